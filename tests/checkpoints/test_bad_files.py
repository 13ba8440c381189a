"""Files that are damaged, hostile or of something else: a line that names the file and the key."""

from __future__ import annotations

import pickle
import re

import pytest
import safetensors.torch
import torch

from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.tensors import is_pickle, read_pickle
from ddim.checkpoints.weights import Pick, fill
from ddim.model.opening import load

T = torch.tensor([3])


@pytest.fixture(scope="module")
def weights(plain):
    p = plain.Plain()
    plain.official(p, plain.randn(1, 3, 16, 16), T, blocks=1)
    return p.w


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model"])
def test_code_in_a_pickle_is_refused_before_it_runs(tmp_path, refuses, weights, name, archive):
    path, trap = tmp_path / name, tmp_path / "ran"
    torch.save({**weights, "extra": Malicious(trap)}, path, _use_new_zipfile_serialization=archive)
    for read in (read_foreign, load, read_pickle):
        with refuses(f"{name} is refused: its pickle names (io|_io|builtins).open, which is code"):
            read(path)
    assert not trap.exists()


def test_a_bare_pickle_with_code_is_refused(tmp_path, refuses):
    path, trap = tmp_path / "model.pth", tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"state": Malicious(trap)}, protocol))
        with refuses(r"model.pth (is refused|is neither a torch checkpoint nor)"):
            load(path)
    assert not trap.exists()


def test_a_network_instead_of_its_weights_is_refused(tmp_path, refuses):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with refuses("net.pt is refused: .*torch.nn.modules.linear.Linear, which is code.*state_dict"):
        load(tmp_path / "net.pt")


def test_every_pickle_is_read_with_weights_only_on_the_cpu(tmp_path, weights, monkeypatch):
    calls = []
    real = torch.load

    def spy(*args, **options):
        calls.append(options)
        return real(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    for archive in (True, False):
        path = tmp_path / "model.ckpt"
        torch.save(weights, path, _use_new_zipfile_serialization=archive)
        read_foreign(path)
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x02 not much")
    with pytest.raises(Exception, match="neither a torch checkpoint"):
        read_foreign(path)
    assert calls == [
        {"map_location": "cpu", "weights_only": True, "mmap": mapped}
        for mapped in (True, False, False)
    ]


@pytest.mark.parametrize("version", ["2.9.1", "2.0.0+cpu"])
def test_an_old_torch_reads_no_pickles(tmp_path, weights, monkeypatch, refuses, version):
    torch.save(weights, tmp_path / "model.ckpt")
    monkeypatch.setattr(torch, "__version__", version)
    with refuses(f"torch {re.escape(version)} is too old to read a pickle safely: .* 2.10"):
        read_foreign(tmp_path / "model.ckpt")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    assert read_foreign(tmp_path / "model.safetensors").shape == (3, 32, 32)


def test_truncated_files(tmp_path, weights, refuses):
    path = tmp_path / "model.ckpt"
    for archive in (True, False):
        torch.save(weights, path, _use_new_zipfile_serialization=archive)
        whole = path.read_bytes()
        for size in (0, 1, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with refuses(
                "model.ckpt is (neither a torch checkpoint nor a safetensors file|"
                "not a safetensors file), or is truncated"
            ):
                load(path)


def test_the_first_bytes_tell_what_a_file_is(tmp_path):
    for archive in (True, False):
        torch.save({"x": torch.zeros(1)}, tmp_path / "x", _use_new_zipfile_serialization=archive)
        assert is_pickle(tmp_path / "x")
    # A header of 640 bytes begins like a pickle of protocol 2.
    tensors = {"x": torch.zeros(1)}
    for length in range(500, 700):
        safetensors.torch.save_file(tensors, tmp_path / "x", metadata={"pad": "x" * length})
        assert not is_pickle(tmp_path / "x")


def edited(path, weights, **changes):
    """Save with some tensors replaced; None takes one out."""
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    values = {**weights, **changes}
    torch.save({key: value for key, value in values.items() if value is not None}, path)
    return path


def test_missing_and_unexpected_keys_are_listed_by_name(tmp_path, weights, refuses):
    path = tmp_path / "x.ckpt"
    kept = weights["mid.attn_1.q.weight"]
    with refuses(
        r"x.ckpt does not fit the official DDIM layout: 1 missing \(mid.attn_1.q.weight\) and "
        r"1 unexpected \(mid.attn_1.query.weight\) keys"
    ):
        read_foreign(
            edited(path, weights, mid__attn_1__q__weight=None, mid__attn_1__query__weight=kept)
        )
    for key in ("conv_in.weight", "down.1.block.0.conv1.weight", "conv_out.weight"):
        with refuses(rf"x.ckpt does not fit .*: 1 missing \({key}\) keys"):
            torch.save({k: v for k, v in weights.items() if k != key}, path)
            read_foreign(path)
    many = {f"extra.{i:02}": torch.zeros(1) for i in range(11)}
    with refuses(r"11 unexpected \(extra.00, .*, extra.07 and 3 more\) keys"):
        torch.save(weights | many, path)
        read_foreign(path)


def test_other_shapes_are_named_as_the_file_has_them(tmp_path, weights, refuses):
    path = tmp_path / "x.ckpt"
    with refuses(
        r"x.ckpt: mid.attn_1.k.weight has shape \(64, 32, 1, 1\), the official DDIM layout asks "
        r"for \(64, 64, 1, 1\)"
    ):
        read_foreign(edited(path, weights, mid__attn_1__k__weight=torch.zeros(64, 32, 1, 1)))
    with refuses(r"x.ckpt: conv_out.weight gives 5 channels for the 3 that conv_in.weight takes"):
        read_foreign(edited(path, weights, conv_out__weight=torch.zeros(5, 32, 3, 3)))
    with refuses(r"1 missing \(conv_in.weight\)"):
        read_foreign(edited(path, weights, conv_in__weight=torch.tensor(1.0)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(tmp_path, weights, refuses, value):
    spoiled = weights["up.0.block.1.conv2.weight"].clone()
    spoiled[3, 2, 1, 0] = value
    path = edited(tmp_path / "x.ckpt", weights, up__0__block__1__conv2__weight=spoiled)
    with refuses("x.ckpt: up.0.block.1.conv2.weight holds values that are not finite"):
        read_foreign(path)


def test_large_finite_values_are_not_mistaken(tmp_path):
    net = torch.nn.Linear(2, 2, bias=False)
    weight = torch.tensor([[3e38, 3e38], [3e38, -3e38]])
    fill(net, {"weight": weight}, tmp_path / "x")
    assert torch.equal(net.weight, weight)


def test_what_is_no_layout(tmp_path, refuses):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, path)
    with refuses("x.pt is not a training checkpoint of ddim, nor one of .* begin with a, b"):
        load(path)
    for value in ([1, 2], {}, {"a": 3}, torch.zeros(3), [{"a": torch.zeros(1)}]):
        torch.save(value, path)
        with refuses("x.pt holds no state_dict of official DDIM"):
            load(path)
    torch.save({"down_blocks.0.resnets.0.norm1.weight": torch.zeros(1)}, path)
    with refuses("x.pt is the weights of a diffusers folder: give the folder"):
        load(path)


def test_a_pick_of_a_joint_projection():
    rows = torch.arange(12.0)[:, None]  # two heads of two channels
    own = torch.Size([4, 1])
    by_head = [Pick("qkv", third=i, groups=2).take(rows, own)[:, 0].tolist() for i in range(3)]
    whole = [Pick("qkv", third=i).take(rows, own)[:, 0].tolist() for i in range(3)]
    assert by_head == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    assert whole == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


class Shell:
    """The classic: unpickled, it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_command_in_a_pickle_is_refused_by_name(tmp_path, refuses, weights, archive):
    path, trap = tmp_path / "model.pt", tmp_path / "ran"
    extra = {**weights, "extra": Shell(f"touch {trap}")}
    torch.save(extra, path, _use_new_zipfile_serialization=archive)
    with refuses(r"model.pt is refused: its pickle names (posix|nt|os)\.system, which is code"):
        load(path)
    assert not trap.exists()


def _saved(tmp_path, weights, **changes):
    path = tmp_path / "model.ckpt"
    torch.save({**weights, **changes}, path)
    return path


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.ones(5), r"conv_in.weight has shape \(5,\)"),
        (torch.ones(8, 3, 3, 3, dtype=torch.int64), "conv_in.weight holds torch.int64"),
        (torch.ones(8, 3, 3, 3, dtype=torch.bool), "conv_in.weight holds torch.bool"),
        (torch.ones(8, 3, 3, 3, dtype=torch.complex64), "conv_in.weight holds torch.complex64"),
        (torch.full((8, 3, 3, 3), 1e300, dtype=torch.float64), "values that are not finite"),
        (torch.full((8, 3, 3, 3), float("nan")), "values that are not finite"),
    ],
)
def test_weights_that_are_none(tmp_path, refuses, weights, value, match):
    if value.ndim == 4:
        value = value[:1, :1, :1, :1].expand(weights["conv_in.weight"].shape).clone()
    with refuses(f"model.ckpt.*{match}"):
        load(_saved(tmp_path, weights, **{"conv_in.weight": value}))


def test_an_average_under_the_networks_own_names_is_taken(tmp_path, refuses, weights):
    path = tmp_path / "both.pt"
    average = {key: value + 1 for key, value in weights.items()}
    torch.save({"model": weights, "ema": average}, path)
    found = load(path)
    assert found.facts.weights == "ema"
    assert torch.equal(found.net.conv_in.bias, average["conv_in.bias"])
    torch.save({"model": weights, "ema": {"something": torch.ones(1)}}, path)
    with refuses("both.pt: ema holds other keys than model"):
        load(path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"image_size": 16.5}', "image_size must be a whole number of at least 1, not 16.5"),
        ('{"image_size": true}', "image_size must be a whole number of at least 1, not True"),
        ('{"target": 3}', "target is a name, not 3"),
        ('{"rescale_times": "yes"}', "rescale_times is true or false, not 'yes'"),
        ('{"schedule": "linear"}', "schedule is an object such as .*, not 'linear'"),
    ],
)
def test_notes_of_the_wrong_type_name_the_key(tmp_path, refuses, weights, text, match):
    path = _saved(tmp_path, weights)
    path.with_name("model.ckpt.json").write_text(text)
    with refuses(f"model.ckpt.json: {match}"):
        load(path)
