"""Small files that say that they are large: refused in time, and before memory is taken."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from ddim.checkpoints.foreign import read_foreign
from ddim.checkpoints.record import Hints
from ddim.checkpoints.tensors import read_pickle, read_safetensors
from ddim.checkpoints.weights import Shapes, fill
from ddim.nets.lucid import LucidConfig, LucidUnet

MEASURED = """
import json, resource, sys, time
from ddim.model.opening import load
from ddim.base.errors import InputError
load("mnist")
before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load(sys.argv[1])
except InputError as error:
    print(error)
taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(json.dumps([taken, time.process_time() - begun]))
"""


def bomb(path):
    """A checkpoint of 100 kB whose pickle unpacks to 100 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"]" * 100_000_000)
        archive.writestr("x/version", b"3\n")


def long_archive(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"]" * 9_000_000)
        archive.writestr("x/version", b"3\n")


def long_pickle(path):
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"\x80\x02" + b"]" * 9_000_000)


def many_tensors(path):
    import json

    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{i}": entry for i in range(130_000)}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (bomb, "data.pkl is compressed, which torch never does"),
        (long_archive, "its pickle takes more than 500,000 operations"),
        (long_pickle, "its pickle takes more than 500,000 operations"),
        (many_tensors, "holds 130,000 tensors, and no network so many"),
    ],
)
def test_a_refusal_takes_neither_memory_nor_minutes(tmp_path, make, match):
    import json

    path = tmp_path / ("model.safetensors" if make is many_tensors else "model.ckpt")
    make(path)
    found = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True
    )
    message, figures = found.stdout.strip().split("\n")
    assert match in message
    megabytes, seconds = json.loads(figures)
    assert megabytes < 200
    assert seconds < 4  # of the processor; some 2 where it has nothing else to do


def test_tensors_that_are_one_number(tmp_path, refuses):
    """A view of one number as a matrix takes 4 bytes in a file and gigabytes in a network."""
    net = torch.nn.Linear(40, 50)
    weights = {"weight": torch.zeros(1).expand(50, 40), "bias": torch.zeros(50)}
    with refuses("x: its tensors say 8,200 bytes, and it holds 204 of them"):
        fill(net, weights, tmp_path / "x")
    same = torch.zeros(2000)
    with refuses("its tensors say 8,200 bytes, and it holds 8,000 of them"):
        fill(net, {"weight": same.view(50, 40), "bias": same[:50]}, tmp_path / "x")


def test_blocks_that_are_counted_and_not_there(tmp_path, refuses):
    tensors = {f"down.{i}.block.0.conv1.weight": torch.zeros(1) for i in (0, 10**30)}
    with refuses("x does not fit any: no block 100000000"):
        Shapes(tensors, tmp_path / "x", "any").count(r"down\.(\d+)\.")
    torch.save(
        {"temb.dense.0.weight": torch.zeros(1), "down.0.block.99999.conv1.weight": torch.zeros(1)},
        tmp_path / "x.pt",
    )
    with refuses("x.pt does not fit the official DDIM layout: no block 99999"):
        read_foreign(tmp_path / "x.pt")


def test_tensors_of_kinds_that_are_no_weights(tmp_path, refuses):
    """Whatever safetensors can hold is read or refused, and never an error of its own."""
    import json

    for kind, size in (("BOOL", 1), ("F8_E4M3", 1), ("F4", 1), ("C64", 8), ("U64", 8), ("X", 4)):
        header = {"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 2 * size]}}
        text = json.dumps(header).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(2 * size))
        with refuses("x.safetensors"):
            read_safetensors(path)
            read_foreign(path)


def test_a_folder_instead_of_a_file(tmp_path, refuses):
    for read in (read_pickle, read_safetensors):
        with refuses("is (neither a torch checkpoint|not a safetensors file)"):
            read(tmp_path)


@pytest.mark.parametrize(
    ("key", "shape", "match"),
    [
        ("downs.0.2.mem_kv", (2, 99, 4, 4), "number of heads or features, is 0"),
        ("init_conv.weight", (2**20, 3, 1, 0), "number of heads or features, is 1048576"),
        ("time_mlp.1.weight", (8, 2), "number of heads or features, is 0"),
    ],
)
def test_numbers_that_no_network_has(tmp_path, refuses, key, shape, match):
    config = LucidConfig(3, 3, 8, (8, 8, 16), (False, True), (2, 2), (4, 4))
    weights = {**LucidUnet(config).state_dict(), key: torch.zeros(shape)}
    torch.save(weights, tmp_path / "x.pt")
    with refuses(f"x.pt does not fit the denoising-diffusion-pytorch layout: .*{match}"):
        read_foreign(tmp_path / "x.pt")


def test_a_side_of_an_image_is_bounded(refuses):
    with refuses("image_size must be at most 16384, not 1000000"):
        Hints(image_size=1_000_000)
