"""Sets of shards have the bytes of one undisturbed run, whoever draws them, in whatever order."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import ddim
from ddim.data.load import load_data
from ddim.data.manifest import MANIFEST, Manifest
from ddim.data.shard_files import FORMATS
from ddim.data.sharded import ShardData
from ddim.model.condition import Condition
from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from ddim.shards.checking import verify
from ddim.shards.drawing import Share, draw
from ddim.shards.merging import merge

SETTINGS = {"steps": 3, "shard_size": 4, "batch_size": 2}


def drawn(model, folder, n, method="ddim", **settings):
    """Draw to the end; how many images that took."""
    return sum(told.images for told in draw(model, folder, n, method, **(SETTINGS | settings)))


def pixels(model, n, method="ddim", **settings):
    return ddim.to_pixels(ddim.sample(model, n, method, steps=3, batch_size=2, **settings))


@pytest.mark.parametrize("name", FORMATS)
def test_item_i_is_image_i(tmp_path, model, name):
    assert drawn(model, tmp_path, 11, shard_format=name) == 11
    found, wanted = ShardData(tmp_path), pixels(model, 11)
    assert len(found) == 11
    assert all(torch.equal(found[i], wanted[i]) for i in range(11))
    assert torch.equal(found[-1], wanted[10])
    order = torch.tensor([9, 0, 4, 4, 10])
    assert torch.equal(found.batch(order), wanted[order])
    with pytest.raises(IndexError, match="no image 11 in a set of 11"):
        found[11]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_labels_go_in_turn_over_the_whole_set(tmp_path, conditional, name, guidance):
    condition = Condition([2, 0, 1, 1, 3], guidance=guidance)
    drawn(conditional, tmp_path, 11, condition=condition, shard_format=name)
    found = ShardData(tmp_path)
    wanted = pixels(conditional, 11, labels=[2, 0, 1, 1, 3], guidance=guidance)
    labels = [2, 0, 1, 1, 3, 2, 0, 1, 1, 3, 2]
    for i in range(11):
        image, label = found[i]
        assert torch.equal(image, wanted[i])
        assert label == labels[i]
    assert found.labels(torch.tensor([4, 0])).tolist() == [3, 2]
    assert found.classes == 4  # the label for none is one of the set


def test_every_class_in_turn_without_labels(tmp_path, conditional):
    drawn(conditional, tmp_path, 7)
    assert [ShardData(tmp_path)[i][1] for i in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_set_of_fewer_images_than_classes_grows(tmp_path, conditional, refuses):
    drawn(conditional, tmp_path / "grown", 2)
    assert drawn(conditional, tmp_path / "grown", 5) == 3
    assert [ShardData(tmp_path / "grown")[i][1] for i in range(5)] == [0, 1, 2, 0, 1]
    with refuses("3 labels were given for 2 images"):
        drawn(conditional, tmp_path / "few", 2, condition=Condition([2, 1, 0]))


def test_a_row_of_a_tensor_for_each_image(tmp_path):
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t, shift):
            return self.weight * x * 0.1 + shift[:, None, None, None]

    own = Model(Shifted().eval(), Schedule.linear(20, 0.01, 0.4), "eps", (1, 8, 8))
    shift = torch.linspace(-1, 1, 7)
    drawn(own, tmp_path, 7, condition={"shift": shift})
    wanted = pixels(own, 7, condition={"shift": shift})
    assert torch.equal(ShardData(tmp_path).batch(torch.arange(7)), wanted)


@pytest.mark.parametrize("method", ["ddim", "ddim:eta=1", "ddpm"])
@pytest.mark.parametrize("name", FORMATS)
def test_the_bytes_are_those_of_one_run(tmp_path, model, files, method, name):
    """Shards in another order, in parts, grown, interrupted: nothing tells in the end."""
    settings = {"shard_format": name}
    whole, grown, parts = tmp_path / "whole", tmp_path / "grown", tmp_path / "parts"
    drawn(model, whole, 11, method, **settings)
    wanted = files(whole)
    assert sorted(wanted)[-1] == MANIFEST
    assert not any(part.startswith(".") for part in wanted)  # no record, no claim, no lock

    for n in (1, 6, 8, 11):
        drawn(model, grown, n, method, **settings)
    assert files(grown) == wanted

    for index in (2, 0, 1):
        drawn(model, tmp_path / str(index), 11, method, share=Share(index, 3), **settings)
    merge([tmp_path / "1", tmp_path / "2", tmp_path / "0"], parts)
    assert files(parts) == wanted
    merge([tmp_path / "0"], parts)
    assert files(parts) == wanted

    one = tmp_path / "one"
    for index in (1, 0):
        drawn(model, one, 11, method, share=Share(index, 2), **settings)
    assert files(one) == wanted


def test_growing_draws_only_what_is_new(tmp_path, model):
    assert [drawn(model, tmp_path, n) for n in (5, 5, 6, 12)] == [5, 0, 1, 6]


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_drawn_of_an_interrupted_shard_is_kept(tmp_path, model, files, name):
    drawn(model, tmp_path / "whole", 8, shard_format=name)
    steps = iter(draw(model, tmp_path / "cut", 8, shard_format=name, **SETTINGS))
    next(steps)
    steps.close()
    assert Manifest.read(tmp_path / "cut").shards[0].count == 2
    assert verify(tmp_path / "cut").missing == (0, 1)
    assert drawn(model, tmp_path / "cut", 8, shard_format=name) == 6
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


@pytest.mark.parametrize("name", FORMATS)
def test_lost_and_truncated_shards_are_drawn_again(tmp_path, model, files, name):
    drawn(model, tmp_path, 12, shard_format=name)
    wanted = files(tmp_path)
    first, second = (tmp_path / FORMATS[name].name(k) for k in (0, 1))
    if first.is_dir():
        for file in first.iterdir():
            file.unlink()
        first.rmdir()
        second = next(second.iterdir())
    else:
        first.unlink()
    second.write_bytes(second.read_bytes()[:-3])
    found = verify(tmp_path)
    assert (found.missing, found.damaged, found.whole) == ((0,), (1,), False)
    assert drawn(model, tmp_path, 12, shard_format=name) == 8
    assert files(tmp_path) == wanted
    assert verify(tmp_path).whole


def test_a_changed_byte_is_found_and_the_shard_drawn_again_once_it_is_removed(
    tmp_path, model, files
):
    drawn(model, tmp_path, 9)
    wanted, path = files(tmp_path), tmp_path / "000001.npz"
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    (tmp_path / "notes.txt").write_text("mine")
    found = verify(tmp_path)
    assert (found.missing, found.damaged, found.strange) == ((), (1,), ("notes.txt",))
    path.unlink()
    (tmp_path / "notes.txt").unlink()
    assert drawn(model, tmp_path, 9) == 4
    assert files(tmp_path) == wanted


def test_a_damaged_shard_is_not_built_upon(tmp_path, model, files):
    drawn(model, tmp_path / "whole", 8)
    drawn(model, tmp_path / "grown", 6)
    path = tmp_path / "grown/000001.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert drawn(model, tmp_path / "grown", 8) == 4  # not 2
    assert files(tmp_path / "grown") == files(tmp_path / "whole")


def test_workers_of_a_data_loader_read_it(tmp_path, conditional):
    drawn(conditional, tmp_path, 9)
    data = ShardData(tmp_path)
    data[0]
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=2)
    parts = list(loader)
    assert torch.equal(torch.cat([images for images, _ in parts]), data.batch(torch.arange(9)))
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 1, 2] * 3


def test_it_is_data_to_train_on(tmp_path, conditional):
    drawn(conditional, tmp_path, 9, shard_format="tar")
    data = load_data(str(tmp_path))
    assert (len(data), data.shape, data.classes) == (9, (1, 8, 8), 3)
    assert data.labels(torch.tensor([5, 0])).tolist() == [2, 0]
    assert data.batch(torch.tensor([5])).dtype == torch.uint8


def test_the_public_names():
    assert ddim.shards.open is ShardData
    assert ddim.shards.draw is draw
    assert ddim.shards.verify is verify
    assert {"draw", "merge", "open", "verify"} <= set(dir(ddim.shards))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ddim.shards.nothing  # noqa: B018


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 8}, "a set of 9 images, which may grow but not shrink to 8"),
        ({"shard_size": 5}, "shard_size = 4, not 5"),
        ({"shard_format": "tar"}, "shard_format = 'npz', not 'tar'"),
        ({"steps": 4}, "sampler = 'ddim:steps=3', not 'ddim:steps=4'"),
        ({"method": "ddpm"}, "sampler = 'ddim:steps=3', not 'ddpm:steps=3'"),
        ({"seed": 1}, "seed = 0, not 1"),
        ({"batch_size": 3}, "batch_size = 2, not 3"),
        ({"condition": Condition(clip=True)}, "clip = None, not True"),
    ],
)
def test_another_set_is_refused_by_the_key_that_differs(
    tmp_path, model, files, refuses, changes, message
):
    drawn(model, tmp_path, 9)
    before = files(tmp_path)
    with refuses(message):
        drawn(model, tmp_path, **({"n": 9} | changes))
    assert files(tmp_path) == before


def test_another_spelling_of_the_same_sampler_is_the_same_set(tmp_path, model):
    drawn(model, tmp_path, 5)
    assert drawn(model, tmp_path, 5, "ddim:steps=3:nodes=uniform", steps=None) == 0


def test_another_network_is_refused(tmp_path, model, conditional, refuses):
    drawn(model, tmp_path, 5)
    with refuses("model = '[0-9a-f]{64}', not"):
        drawn(conditional, tmp_path, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "n must be"),
        ({"shard_size": 0}, "the shard size must be"),
        ({"shard_format": "zip"}, "unknown format of shards 'zip'"),
        ({"seed": -1}, "seed"),
        ({"condition": Condition([1])}, "no classes"),
    ],
)
def test_numbers_out_of_range(tmp_path, model, refuses, settings, message):
    with refuses(message):
        drawn(model, tmp_path / "set", **({"n": 3} | settings))
    assert not (tmp_path / "set").exists()


def test_shares(refuses):
    assert Share.parse("0/3") == Share(0, 3)
    for text in ("3/3", "2/2", "-1/2", "1", "1/0", "a/b"):
        with refuses("a share is"):
            Share.parse(text)


def test_a_network_of_vectors_has_no_images(tmp_path, refuses):
    own = Model(nn.Linear(4, 4).eval(), Schedule.linear(20, 0.01, 0.4), "eps", (4,))
    with refuses("shards hold images"):
        draw(own, tmp_path, 3)


def test_merging_parts_that_differ(tmp_path, model, files, refuses):
    for index in (0, 1):
        drawn(model, tmp_path / str(index), 12, share=Share(index, 2))
    drawn(model, tmp_path / "more", 13, share=Share(0, 2))
    drawn(model, tmp_path / "other", 12, seed=1)
    parts, out = [tmp_path / "0", tmp_path / "1"], tmp_path / "out"
    with refuses("seed = 0, not 1"):
        merge([*parts, tmp_path / "other"], out)
    with refuses("of 12 images, and .* of 13"):
        merge([*parts, tmp_path / "more"], out)
    with refuses("is one of the parts"):
        merge(parts, tmp_path / "1")
    with refuses("is no set of shards"):
        merge([*parts, tmp_path], out)
    with refuses("name the parts"):
        merge([], out)
    assert not out.exists()

    # The same shard with other bytes, as of a machine that rounds otherwise.
    drawn(model, tmp_path / "twin", 12)
    path = tmp_path / "twin" / MANIFEST
    path.write_text(path.read_text().replace(Manifest.read(tmp_path / "1").shards[1].sha256, "0"))
    with refuses("shard 1 of .* differs from that of"):
        merge([*parts, tmp_path / "twin"], out)
    assert not out.exists()

    broken = tmp_path / "1" / "000001.npz"
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    with refuses("000001.npz is damaged or missing"):
        merge(parts, out)
    assert not (out / "000001.npz").exists()
    broken.unlink()
    merge([tmp_path / "0"], out)
    assert verify(out).missing == (1,)
    with refuses("lacks 1 of 3 shards, the first is 1"):
        ShardData(out)
    assert torch.equal(ShardData(out, partial=True)[8], pixels(model, 9)[8])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of version 2, and this ddim reads up to 1: update ddim"),
        ({"kind": "else"}, "no manifest of shards"),
        ({"n": 0}, "n and shard_size are at least 1"),
        ({"shards": {"number": [1], "count": [], "bytes": [], "sha256": []}}, "different lengths"),
        ({"shards": []}, "shards must be"),
        ({"n": "9"}, "n must be a whole number"),
    ],
)
def test_damaged_manifests(tmp_path, model, files, refuses, changes, message):
    drawn(model, tmp_path, 9)
    path = tmp_path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = files(tmp_path)
    with refuses(message):
        drawn(model, tmp_path, 9)
    with refuses(message):
        verify(tmp_path)
    assert files(tmp_path) == before


def test_a_folder_of_something_else_is_no_set(tmp_path, refuses):
    with refuses("no set of shards: it has no manifest.json"):
        ShardData(tmp_path)


def test_a_shard_that_is_no_shard(tmp_path, model, refuses):
    drawn(model, tmp_path, 4)
    size = (tmp_path / "000000.npz").stat().st_size
    (tmp_path / "000000.npz").write_bytes(b"?" * size)
    with refuses("000000.npz is damaged"):
        ShardData(tmp_path)[0]


def test_another_build_is_said(tmp_path, model, caplog):
    drawn(model, tmp_path, 4)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace(torch.__version__, "1.0"))
    assert drawn(model, tmp_path, 8) == 4
    assert f"was begun with torch 1.0, and this is {torch.__version__}" in caplog.text


def test_a_network_that_makes_no_numbers_writes_nothing(tmp_path, model):
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x, t):
            return self.weight * x * torch.nan

    own = dataclasses.replace(model, net=Broken().eval())
    with pytest.raises(ddim.RunError, match="finite"):
        drawn(own, tmp_path, 4)
    assert not list(tmp_path.glob("*.npz"))


def test_npz_is_what_numpy_reads_too(tmp_path, conditional):
    drawn(conditional, tmp_path, 4)
    with np.load(tmp_path / "000000.npz") as arrays:
        assert arrays["images"].shape == (4, 8, 8, 1)
        assert arrays["labels"].tolist() == [0, 1, 2, 0]
