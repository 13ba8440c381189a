"""What processes exchange arrives as it was; jobs and their ends in one process."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ddim.backends.exchange import _packed, _unpacked, over_ranks
from ddim.base.ranks import Ranks, told_elsewhere

CPU = torch.device("cpu")


def test_tensors_keep_bits_strides_and_types():
    wide = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        inferred = torch.randn(3)
    odd = torch.tensor([float("nan"), -0.0, float("inf")], dtype=torch.bfloat16)
    given = [(wide, wide[:1]), {"odd": odd, "none": torch.zeros(0, 3)}, inferred, torch.tensor(2)]
    found = _unpacked(_packed(given), CPU)
    assert found[0][0].stride() == wide.stride()
    assert torch.equal(found[0][0], wide)
    assert torch.equal(found[0][1], wide[:1])
    assert torch.equal(found[1]["odd"].view(torch.int16), odd.view(torch.int16))
    assert found[1]["none"].shape == (0, 3)
    assert torch.equal(found[2], inferred)
    assert found[3].shape == ()
    assert np.array_equal(_unpacked(_packed([np.arange(3.0)]), CPU)[0], np.arange(3.0))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ends_come_in_order_with_their_steps_before_them(workers):
    def job(number):
        yield number, "step"
        yield number, "end"

    found = list(
        over_ranks(job, 7, workers, ends=lambda e: e[1] == "end", ranks=Ranks(), device=CPU)
    )
    assert [e for e in found if e[1] == "end"] == [(n, "end") for n in range(7)]
    assert sorted(e for e in found if e[1] == "step") == [(n, "step") for n in range(7)]
    assert all(found.index((n, "step")) < found.index((n, "end")) for n in range(7))


def test_errors_and_closing_end_the_workers():
    def job(number):
        if number == 3:
            raise ValueError("the fourth")
        yield number

    def run():
        return over_ranks(job, 6, 2, ends=lambda _: True, ranks=Ranks(), device=CPU)

    with pytest.raises(ValueError, match="the fourth") as info:
        list(run())
    assert not told_elsewhere(info.value)
    started = run()
    assert next(started) == 0
    started.close()
    assert not [t for t in threading.enumerate() if t.name == "ddim worker"]


def test_jobs_are_divided_in_turn():
    parts = [list(Ranks(rank, 3).own(8)) for rank in range(3)]
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert Ranks(2, 3).own(2) == range(0)
