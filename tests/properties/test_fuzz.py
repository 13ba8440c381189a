"""Damaged files of every kind that the package reads: refused as such, or read."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from ddim.base.errors import InputError
from ddim.base.files import read_json
from ddim.checkpoints.calibration import read_calibration, write_calibration
from ddim.checkpoints.official import official_picks
from ddim.checkpoints.openai_layout import OPENAI, openai_picks
from ddim.checkpoints.tensors import write_safetensors
from ddim.checkpoints.training import read_training, write_training
from ddim.cli.options import parse
from ddim.cli.sample import SampleOptions
from ddim.cli.train import TrainOptions
from ddim.data.cifar import load_cifar
from ddim.data.idx import load_idx
from ddim.data.load import load_data
from ddim.data.npz import load_npz
from ddim.data.pictures import read_mask
from ddim.evaluate.features.extractor import Extractor, Identity
from ddim.evaluate.features.lenet import LENET_FOLDER, load_lenet
from ddim.evaluate.features.published import read_published
from ddim.evaluate.features.statistics import Statistics
from ddim.evaluate.sweep.kept import CellFiles, load_images, save_images
from ddim.latents.record import Latents
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.nets.lucid import LucidConfig, LucidUnet
from ddim.nets.unet import UNet, UNetConfig
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler
from ddim.train.checkpoint import saved_config

SMALL = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": None,
}
SCHEDULE = Schedule.linear(20)
OWN = Extractor(Identity("own", "none", 4, 2, "ab" * 32), lambda x: (x, None))
VALUES = (
    *("null", "true", "-1", "0", "1e999", "-0.5", '"x"', '""', "[]", "{}", "[[1]]", "NaN"),
    *("99999999999", "9" * 40, "9" * 5000, "[" * 3000, '{"a": 1}', "1979-05-27", "0x" + "f" * 99),
)
RNG = np.random.default_rng


class Subject(NamedTuple):
    """A file, and what reads it."""

    path: Path
    read: Callable[[], object]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A file's bytes with flips, a cut, an insertion, a repetition, or another value in them."""
    kind, data = rng.integers(6), bytearray(content)
    # Half of the damage is where headers are.
    within = min(len(data), 400) if rng.random() < 0.5 else len(data)
    at = int(rng.integers(within))
    if kind == 0:
        for place in rng.integers(within, size=rng.integers(1, 9)):
            data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 3:
        del data[at : at + int(rng.integers(1, 40))]
    elif kind == 4:
        data[at:at] = data[at : at + int(rng.integers(1, 400))]
    else:
        # A value of JSON, TOML or a safetensors header, in place of another.
        found = list(re.finditer(rb'(?<=[:=\[,])\s*(?:"[^"]*"|[\w.+-]+)', content))
        if found:
            match = found[int(rng.integers(len(found)))]
            data[match.start() : match.end()] = VALUES[int(rng.integers(len(VALUES)))].encode()
            if content[8:9] == b"{":  # its length comes first
                (length,) = struct.unpack("<Q", content[:8])
                data[:8] = struct.pack("<Q", length + len(data) - len(content))
    return bytes(data)


def official_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = UNet(UNetConfig(**{**SMALL, "norm_num_groups": 32, "block_out_channels": (32, 32)}))
    picks, state = official_picks(net), net.state_dict()
    return {p.key: state[k].reshape(p.shape(state[k].shape)) for k, p in picks.items() if p.key}


def openai_weights() -> dict[str, torch.Tensor]:
    config = {**SMALL, "norm_num_groups": 32, "block_out_channels": (32, 32)}
    net = UNet(UNetConfig(**config, time_embedding_dim=128))
    parts: dict[str, list[torch.Tensor]] = {}
    for key, pick in openai_picks(net, OPENAI, whole=True).items():
        if pick.key is not None:
            value = net.state_dict()[key]
            parts.setdefault(pick.key, []).append(value.reshape(*value.shape, *(1,) * pick.tail))
    return {key: torch.cat(values) for key, values in parts.items()}


def lucid_weights() -> dict[str, torch.Tensor]:
    config = LucidConfig(3, 3, 8, (8, 8, 16), (False, True), (2, 2), (4, 4))
    weights = LucidUnet(config).state_dict()
    return {"betas": torch.linspace(1e-3, 0.02, 20)} | {f"model.{k}": v for k, v in weights.items()}


def checkpoints(root: Path) -> dict[str, Subject]:
    hints = {"image_size": 8, "schedule": {"kind": "linear", "T": 20}}
    found = {}
    for name, value in {
        "official.ckpt": official_weights(),
        "openai.pt": openai_weights(),
        "lucid.pt": {"model": lucid_weights(), "ema": {"step": torch.zeros(1)}, "step": 3},
    }.items():
        path = root / name
        torch.save(value, path)
        path.with_name(f"{name}.json").write_text(json.dumps(hints))
        weights = "net" if "lucid" in name else "ema"
        found[name] = Subject(path, lambda path=path, weights=weights: load(path, weights=weights))
    bare = root / "bare.ckpt"
    torch.save(official_weights(), bare, _use_new_zipfile_serialization=False)
    bare.with_name("bare.ckpt.json").write_text(json.dumps(hints))
    found["bare.ckpt"] = Subject(bare, lambda: load(bare))
    weights = official_weights()
    index = root / "official.safetensors.index.json"
    places = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(weights)}
    for name in set(places.values()):
        part = {key: value for key, value in weights.items() if places[key] == name}
        write_safetensors(root / name, part, {})
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    index.with_name(f"{index.name}.json").write_text(json.dumps(hints))
    found["index"] = Subject(index, lambda: load(index))
    found["shard"] = Subject(root / "part-0.safetensors", lambda: load(index))
    found["notes"] = Subject(root / "official.ckpt.json", lambda: load(root / "official.ckpt"))
    return found


def models(root: Path) -> dict[str, Subject]:
    net = UNet(UNetConfig(**SMALL))
    model = Model(net, SCHEDULE, "eps", (3, 8, 8))
    model.save(root / "model")
    found = {
        name: Subject(root / "model" / name, lambda: load(root / "model"))
        for name in (
            "model_index.json",
            "ddim.json",
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "unet/diffusion_pytorch_model.safetensors",
        )
    }
    facts = {
        "unet": net.config.to_json(),
        "schedule": dict(SCHEDULE.spec),
        "target": "eps",
        "classes": None,
    }
    state = {f"ema.{k}": v for k, v in net.state_dict().items()}
    training = root / "checkpoint.safetensors"
    write_training(training, {"data": "mnist", "T": 20}, 7, facts, state)
    found["training"] = Subject(
        training, lambda: (load(training), saved_config(read_training(training)))
    )
    calibrated = root / "calibrated.json"
    sampler = Sampler("dpmpp", nodes=(20, 12, 0), order=2)
    moments = (20, 12, 0), np.array([0.5, 0.5]), 8
    write_calibration(calibrated, model.identity, SCHEDULE, sampler, moments, {"rms": 0.1})
    found["calibrated.json"] = Subject(calibrated, lambda: read_calibration(calibrated))
    latents = root / "latents.safetensors"
    tensors = (torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
    Latents(tensors, "obelm", (20, 10, 0), "m", model.identity, 8).save(latents)
    found["latents"] = Subject(latents, lambda: Latents.load(latents))
    return found


def measurements(root: Path) -> dict[str, Subject]:
    statistics = Statistics(OWN.identity, "x", keep=5)
    statistics.add(RNG(0).random((9, 4), np.float32), np.eye(2)[np.arange(9) % 2], range(9), (1,))
    kept = root / "kept.safetensors"
    statistics.save(kept)
    save_images(root / "first.safetensors", torch.zeros(2, 1, 4, 4))
    np.savez(root / "fid.npz", mu=np.zeros(4), sigma=np.eye(4))
    cell = CellFiles(Sampler.parse("dpmpp:order=3:steps=10"), root / "cell", OWN)
    cell.begin()
    cell.save(0, statistics, 3.0)
    shutil.copytree(LENET_FOLDER, root / "lenet")
    return {
        "statistics": Subject(
            kept, lambda: (Statistics.load(kept, OWN), Statistics.count_in(kept))
        ),
        "published": Subject(root / "fid.npz", lambda: read_published(root / "fid.npz")),
        "images": Subject(
            root / "first.safetensors", lambda: load_images(root / "first.safetensors")
        ),
        "cell.json": Subject(
            root / "cell" / "cell.json", lambda: CellFiles.found(root / "cell", OWN)
        ),
        "seed-0.json": Subject(root / "cell" / "seed-0.json", lambda: cell.seconds(0)),
        "lenet": Subject(root / "lenet" / "model.safetensors", lambda: load_lenet(root / "lenet")),
    }


def records(root: Path) -> dict[str, Subject]:
    sample, train, plain = (root / name for name in ("sample.toml", "train.toml", "plain.json"))
    sample.write_text(
        'model = "mnist"\nmethod = "dpmpp:order=3"\nsteps = 10\nn = 4\nlabels = [1, 2]\n'
        'output = "o.png"\nguidance = 1.5\nseed = 3\nquiet = true\n'
    )
    train.write_text('data = "mnist"\nchannels = [8, 16]\nT = 20\nlr = 0.001\nbatch_size = 8\n')
    plain.write_text(json.dumps({"a": [1, 2.5, {"b": "c"}], "d": None, "e": [True, "é"]}))
    config = ["--config", str(sample)]
    return {
        "sample.toml": Subject(sample, lambda: parse(SampleOptions, "sample", config)),
        "train.toml": Subject(
            train, lambda: parse(TrainOptions, "train", ["--config", str(train)])
        ),
        "plain.json": Subject(plain, lambda: read_json(plain)),
    }


def data(root: Path) -> dict[str, Subject]:
    pixels = RNG(0).integers(0, 256, (4, 6, 6), dtype=np.uint8)
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pixels.shape)
    idx, packed, npz = (root / n for n in ("x-images-idx3-ubyte", "y-images.gz", "a.npz"))
    idx.write_bytes(header + pixels.tobytes())
    packed.write_bytes(gzip.compress(header + pixels.tobytes(), mtime=0))
    np.savez(npz, images=pixels, labels=np.arange(4))
    cifar = root / "cifar-10-batches-bin"
    cifar.mkdir()
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        (cifar / name).write_bytes(RNG(1).integers(0, 10, 2 * 3073, dtype=np.uint8).tobytes())
    found = {
        "idx": Subject(idx, lambda: load_idx("x", idx, None)),
        "idx.gz": Subject(packed, lambda: load_idx("y", packed, None)),
        "data.npz": Subject(npz, lambda: load_npz(npz)),
        "cifar": Subject(cifar / "test_batch.bin", lambda: load_cifar("c", cifar, "test")),
    }
    for kind in ("png", "jpg", "tif", "webp", "gif", "bmp"):
        folder = root / kind
        folder.mkdir()
        path = folder / f"a.{kind}"
        Image.fromarray(np.kron(pixels[0], np.ones((4, 4), np.uint8))).save(path)

        def read(folder: Path = folder, path: Path = path) -> None:
            read_mask(path)
            images = load_data(str(folder), size=8, channels=1)
            images.batch(torch.arange(len(images)))

        found[kind] = Subject(path, read)
    return found


SUBJECTS = (checkpoints, models, measurements, records, data)


def fuzz(subjects: dict[str, Subject], each: int, seed: int) -> tuple[int, int, list[str]]:
    """How many inputs were refused and how many read, and what else came of them."""
    refused = read = 0
    wrong = []
    for name, subject in subjects.items():
        whole = subject.path.read_bytes()
        subject.read()  # what is not damaged is read
        rng = RNG([seed, *name.encode()])
        for i in range(each):
            # Not written over: a reader may have mapped the file.
            subject.path.unlink()
            subject.path.write_bytes(damaged(whole, rng))
            try:
                subject.read()
                read += 1
            except InputError as error:
                refused += 1
                if "\n" in str(error):
                    wrong.append(f"{name} {i}: several lines: {error}")
            except Exception as error:  # what the test looks for
                wrong.append(f"{name} {i}: {type(error).__name__}: {error}"[:300])
        subject.path.unlink()
        subject.path.write_bytes(whole)
    return refused, read, wrong


@pytest.mark.parametrize("make", SUBJECTS, ids=lambda make: make.__name__)
def test_a_damaged_file_is_refused_or_read(make, tmp_path):
    refused, read, wrong = fuzz(make(tmp_path), 9, seed=0)
    assert not wrong, "\n".join(wrong)
    assert refused > read


@pytest.mark.slow
@pytest.mark.parametrize("make", SUBJECTS, ids=lambda make: make.__name__)
def test_many_damaged_files_are_refused_or_read(make, tmp_path):
    refused, read, wrong = fuzz(make(tmp_path), 180, seed=1)
    print(f"{make.__name__}: {refused} refused, {read} read")
    assert not wrong, "\n".join(wrong)
