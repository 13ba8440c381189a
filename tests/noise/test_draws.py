from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.noise.draws import DeviceNoise, Noise, derive, philox


def normal_on_device(
    seed: int, images: list[int], state: int, shape: tuple[int, ...]
) -> torch.Tensor:
    """The CUDA path, which is tensor operations only and so runs anywhere."""
    return DeviceNoise(DeviceNoise.words(seed, images), shape)(state)


def normal(seed: int, images: list[int], state: int, shape: tuple[int, ...]) -> torch.Tensor:
    return Noise(seed, images, shape)(state)


both_paths = pytest.mark.parametrize("draw", [normal, normal_on_device], ids=["cpu", "device"])


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


# -- Philox ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_known_answers(counter, key, words):
    """The vectors of Random123's kat_vectors for philox4x32, 10 rounds."""
    counter = [torch.tensor([int(word, 16)]) for word in counter.split()]
    first, second = (int(word, 16) for word in key.split())
    out = philox(counter, (first, second))
    assert " ".join(f"{int(word):08x}" for word in out) == words


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
def test_philox_is_the_definition(numbers):
    """Against Python's integers, which do not wrap around."""
    c0, c1, c2, c3, k0, k1 = numbers
    out = philox([torch.tensor([c]) for c in (c0, c1, c2, c3)], (k0, k1))
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 % 2**32, p0 >> 32 ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    assert [int(word) for word in out] == [c0, c1, c2, c3]


def test_philox_broadcasts():
    rows, columns = torch.arange(3)[:, None], torch.arange(5)[None, :]
    zero = torch.zeros(1, 1, dtype=torch.long)
    grid = philox((columns, zero, rows, zero), (1, 2))
    one = philox([torch.tensor(c) for c in (4, 0, 2, 0)], (1, 2))
    assert [word.shape for word in grid] == [(3, 5)] * 4
    assert [int(word[2, 4]) for word in grid] == [int(word) for word in one]


# -- a pure function of (seed, image, state) ------------------------------------------------------


@both_paths
def test_an_image_is_the_same_in_every_batch_and_order(draw):
    shape = (1, 5, 5)  # 25 numbers: no multiple of the generator's blocks
    whole = draw(7, list(range(6)), 3, shape)
    order = [4, 0, 5, 2, 1, 3]
    assert same_bytes(draw(7, order, 3, shape), whole[order])
    for i in range(6):
        assert same_bytes(draw(7, [i], 3, shape), whole[i : i + 1])
    assert same_bytes(draw(7, [2, 2], 3, shape), whole[[2, 2]])


@both_paths
def test_nothing_global_is_read_or_changed(draw):
    torch.manual_seed(1)
    np_state = np.random.get_state()[1].tobytes()  # noqa: NPY002
    before = torch.get_rng_state()
    first = draw(0, [0], 0, (9,))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tobytes() == np_state  # noqa: NPY002
    torch.manual_seed(2)
    assert same_bytes(draw(0, [0], 0, (9,)), first)


@both_paths
def test_states_may_be_asked_for_in_any_order(draw):
    if draw is normal:
        noise = Noise(5, [1, 2], (3,))
        forwards = [noise(state) for state in range(4)]
        backwards = [noise(state) for state in reversed(range(4))]
        assert all(same_bytes(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    else:
        assert same_bytes(draw(5, [1], 2, (3,)), draw(5, [1], 2, (3,)))


LARGE = 2**32


@both_paths
def test_every_seed_image_and_state_is_another(draw):
    """Also those that agree in their lower 32 bits, all that torch's CPU generator keeps."""
    seeds = [0, 1, 2, LARGE, LARGE + 1, 5 * LARGE, 2**63, 2**63 + 1, 2**64 - 1]
    images = [0, 1, 2, LARGE, LARGE + 1, 2**63, 2**63 + 1, 2**64 - 1]
    states = [0, 1, 2, 1000]
    seen = set()
    for seed in seeds:
        for state in states:
            batch = draw(seed, images, state, (4,))
            seen |= {row.numpy().tobytes() for row in batch}
    assert len(seen) == len(seeds) * len(images) * len(states)


@both_paths
def test_seed_and_image_do_not_stand_in_for_each_other(draw):
    assert not torch.equal(draw(1, [0], 0, (8,)), draw(0, [1], 0, (8,)))
    assert not torch.equal(draw(0, [1], 0, (8,)), draw(0, [0], 1, (8,)))


def test_fifty_thousand_images_are_all_different():
    """With 32 bits of a hash, two of them would be the same with probability ¼."""
    noise = Noise(0, range(50_000), (2,))(0).double().numpy()
    assert len(np.unique(noise, axis=0)) == 50_000


@both_paths
def test_a_longer_image_begins_like_a_shorter_one_only_if_drawn_so(draw):
    """Shape is not part of the key; its size only cuts the stream."""
    assert same_bytes(draw(3, [8], 1, (2, 3)).view(1, 6), draw(3, [8], 1, (6,)))


# -- the distribution -----------------------------------------------------------------------------


@both_paths
def test_moments(draw):
    x = draw(11, list(range(250)), 0, (4000,)).double()
    n = x.numel()
    assert x.isfinite().all()
    assert abs(float(x.mean())) < 5 / n**0.5
    assert float(x.var()) == pytest.approx(1, abs=5 * (2 / n) ** 0.5)
    assert abs(float((x**3).mean())) < 5 * (15 / n) ** 0.5
    assert float((x**4).mean()) == pytest.approx(3, abs=5 * (96 / n) ** 0.5)
    # Tails: P(|x| > 3) = 0.0026998, and a million normals reach beyond 4.
    beyond = float((x.abs() > 3).double().mean())
    assert beyond == pytest.approx(0.0026998, abs=5 * (0.0027 / n) ** 0.5)
    assert 4 < float(x.abs().max()) < 7


@both_paths
def test_the_whole_distribution(draw):
    """Kolmogorov-Smirnov distance from the normal."""
    x = draw(2, list(range(50)), 4, (2000,)).double().flatten().sort().values
    n = len(x)
    cdf = torch.special.ndtr(x)
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((cdf - steps[:-1]).abs().max(), (steps[1:] - cdf).abs().max())
    assert float(distance) < 1.95 / n**0.5  # exceeded once in 1,000


@both_paths
def test_neighbours_are_not_correlated(draw):
    """In the image, across images, states and seeds."""
    x = draw(0, list(range(100)), 0, (1000,)).double()
    limit = 5 / x.numel() ** 0.5
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < limit
    assert abs(float((x[1:] * x[:-1]).mean())) < 1.1 * limit
    for other in (draw(0, list(range(100)), 1, (1000,)), draw(1, list(range(100)), 0, (1000,))):
        assert abs(float((x * other.double()).mean())) < limit
    # Each image has its own unit variance: nothing is scaled for the batch.
    assert float(x.var(dim=1).min()) > 0.75
    assert float(x.var(dim=1).max()) < 1.3


@both_paths
def test_streams_do_not_overlap(draw):
    """No state, image or seed begins where another one goes on a little later."""
    base = set(draw(0, [0], 0, (2000,)).flatten().tolist())
    for other in (draw(0, [0], 1, (2000,)), draw(0, [1], 0, (2000,)), draw(1, [0], 0, (2000,))):
        assert len(base & set(other.flatten().tolist())) < 100  # a few coincide by chance


def test_every_precision_has_the_same_noise():
    single = Noise(3, [1, 2], (2, 4))(5)
    assert single.dtype == torch.float32
    assert torch.equal(Noise(3, [1, 2], (2, 4), dtype=torch.float64)(5), single.double())
    assert torch.equal(Noise(3, [1, 2], (2, 4), dtype=torch.bfloat16)(5), single.bfloat16())


def test_the_caller_may_write_into_what_it_got():
    noise = Noise(0, [0], (4,))
    first = noise(0)
    expected = first.clone()
    first.mul_(0)
    assert torch.equal(noise(0), expected)


@pytest.mark.parametrize(
    ("seed", "images", "message"),
    [
        (-1, [0], "the seed must be from 0 to 2⁶⁴ - 1 and whole, not -1"),
        (2**64, [0], "the seed must be"),
        (0, [3, -2], "the image index must be from 0 to 2⁶⁴ - 1 and whole, not -2"),
        (0, [2**64], "the image index must be"),
        (1.5, [0], "the seed must be from 0 to 2⁶⁴ - 1 and whole, not 1.5"),
    ],
)
def test_refusals(seed, images, message, refuses):
    with refuses(message):
        Noise(seed, images, (2,))


def test_derived_seeds_differ_and_fit_a_generator():
    arguments = [
        (s, *c) for s in (0, 1, LARGE) for c in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), (LARGE,))
    ]
    seeds = [derive(*a) for a in arguments]
    assert len(set(seeds)) == len(arguments)
    assert seeds == [derive(*a) for a in arguments]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_torchs_default_precision_changes_nothing():
    expected = Noise(1, [2], (3,))(0)
    torch.set_default_dtype(torch.float64)
    try:
        assert same_bytes(Noise(1, [2], (3,))(0), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_numpys_indices_are_numbers_like_others(kind):
    """On every device: the words of an index are taken of Python's integers."""
    noise = Noise(kind(5), np.arange(3, dtype=kind), (4,))
    assert {type(i) for i in (noise.seed, *noise.images)} == {int}
    assert same_bytes(noise(1), Noise(5, range(3), (4,))(1))
    words = [DeviceNoise.words(noise.seed, images) for images in (noise.images, range(3))]
    assert torch.equal(*words)


def test_other_words_in_the_same_tensor_are_other_noise():
    """What a captured graph is told another batch by."""
    words = DeviceNoise.words(7, [1, 2])
    noise = DeviceNoise(words, (3, 5), torch.float64)
    assert same_bytes(noise(4), normal_on_device(7, [1, 2], 4, (3, 5)).double())
    words.copy_(DeviceNoise.words(2**63 + 5, [LARGE + 1, 9]))
    expected = normal_on_device(2**63 + 5, [LARGE + 1, 9], 4, (3, 5))
    assert same_bytes(noise(4), expected.double())


@pytest.mark.gpu
def test_on_cuda():
    cuda = torch.device("cuda")
    noise = Noise(9, [4, LARGE, 2], (3, 7), cuda)(6)
    assert noise.device.type == "cuda"
    assert torch.equal(Noise(9, [2], (3, 7), cuda)(6)[0], noise[2])
    # The integers are the same everywhere; log, cos and sin differ in their last bits.
    torch.testing.assert_close(
        noise.cpu(), normal_on_device(9, [4, LARGE, 2], 6, (3, 7)), rtol=1e-4, atol=1e-5
    )
    x = Noise(0, range(100), (10_000,), cuda)(0).double()
    assert abs(float(x.mean())) < 5e-3
    assert float(x.var()) == pytest.approx(1, abs=0.0071)
    assert float((x**4).mean()) == pytest.approx(3, abs=0.05)


@pytest.mark.gpu
def test_on_cuda_without_the_host():
    """Nothing waits for the device and nothing is copied, so that it can be captured in a graph."""
    noise = Noise(9, [4, 5], (64,), "cuda")
    expected = noise(3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = noise(3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)
