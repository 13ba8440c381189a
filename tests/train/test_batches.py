from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.noise.schedule import Schedule
from ddim.train.batches import TensorData, check_labels, draw, order
from ddim.train.config import TrainConfig

CONFIG = TrainConfig(T=20, images=24, batch_size=4, classes=True, seed=3)


def labelled(labels: object) -> TensorData:
    images = torch.zeros(6, 1, 4, 4)
    return TensorData(images, None if labels is None else torch.tensor(labels))


# -- the order of the data ------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**40))
def test_every_epoch_shows_every_image_once(length, epoch, seed):
    indices = order(seed, length, epoch * length, length)
    assert sorted(indices.tolist()) == list(range(length))


@given(
    st.integers(1, 30), st.integers(0, 100), st.lists(st.integers(1, 40), min_size=1, max_size=6)
)
def test_batches_are_cut_from_one_stream(length, start, sizes):
    """However it is cut, across epochs too; so nothing is left out and nothing comes twice."""
    whole = order(7, length, start, sum(sizes))
    parts, at = [], start
    for size in sizes:
        parts.append(order(7, length, at, size))
        at += size
    assert torch.equal(torch.cat(parts), whole)


def test_epochs_and_seeds_differ():
    epochs = [order(0, 50, 50 * epoch, 50).tolist() for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order(1, 50, 0, 50).tolist() != epochs[0]


# -- images and labels ----------------------------------------------------------------------------


def test_arrays_become_tensors():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 1, 3, 3)).astype(np.float32)
    data = TensorData(images, np.arange(5))  # pyright: ignore[reportArgumentType]
    assert torch.equal(data.batch(torch.tensor([3, 0])), torch.from_numpy(images[[3, 0]]))
    assert data.labels(torch.tensor([3, 0])).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("images", "targets", "match"),
    [
        (torch.full((2, 1, 3, 3), 200.0), None, "run from 200 to 200, not from -1 to 1"),
        (torch.tensor([[[[0.0, 255.0]]]], dtype=torch.float64), None, "pixels/127.5 - 1"),
        (torch.zeros(4), None, r"must have a shape \(N, \*\), not \(4,\)"),
        (torch.zeros(4, 2), torch.zeros(3), r"4 images have targets of shape \(4,\), not \(3,\)"),
        (torch.zeros(4, 2), torch.zeros(4, 10), r"not \(4, 10\)"),
        (torch.zeros(4, 2), [1, 2, 3, 4], "targets must be a tensor, not a list"),
        ("digits", None, "images must be a tensor, not a str"),
    ],
)
def test_data_that_are_none(images, targets, match, refuses):
    with refuses(match):
        TensorData(images, targets)


def test_data_of_other_scales_are_left_alone():
    """Points, signals, and pictures that are all bright."""
    for values in (torch.full((3, 2), 80.0), torch.full((3, 1, 9), 30.0), torch.ones(3, 1, 2, 2)):
        assert TensorData(values).images is values


@pytest.mark.parametrize(
    ("labels", "null", "changes", "match"),
    [
        ([0, 1, 2, 0, 1, 2], None, {}, "label_dropout = 0.1 puts null_label in the place"),
        ([0, 1, 2, 0, 1, 2], 2, {}, "null_label = 2 is a class of the data"),
        ([0.0, 1, 2, 0, 1, 2], 3, {}, "labels must be whole numbers, not torch.float32"),
        ([True] * 6, 3, {}, "labels must be whole numbers, not torch.bool"),
        (None, 3, {}, "needs data with labels"),
        ([0, 1, 2, 0, 1, 2], 3, {"classes": False}, "null_label is for training with classes"),
    ],
)
def test_trap_labels_that_would_become_another_class(labels, null, changes, match, refuses):
    config = dataclasses.replace(CONFIG, **changes)
    with refuses(match):
        check_labels(labelled(labels), config, null)


def test_labels_that_are_not_dropped_need_no_label_for_none():
    config = dataclasses.replace(CONFIG, label_dropout=0.0)
    data = labelled([5, 6, 7, 5, 6, 7])
    check_labels(data, config, None)
    schedule = Schedule.linear(20)
    batch = draw(data, torch.arange(6), 0, schedule, config, None, torch.device("cpu"))
    assert batch.labels[0].tolist() == [5, 6, 7, 5, 6, 7]


@pytest.mark.parametrize("shape", [(2, 5), (1, 3, 4), (1, 2, 3, 4)])
def test_signals_pictures_and_volumes_are_mirrored_along_their_last_axis(shape):
    images = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    config = dataclasses.replace(CONFIG, classes=False, flip=True)
    schedule = Schedule.linear(20)
    index = torch.arange(64)
    batch = draw(TensorData(images), index, 0, schedule, config, None, torch.device("cpu"))
    assert batch.images.shape == images.shape == batch.noise.shape
    straight = (batch.images == images).flatten(1).all(1)
    mirrored = (batch.images == images.flip(-1)).flatten(1).all(1)
    assert bool((straight ^ mirrored).all())
    assert 16 < int(mirrored.sum()) < 48


def test_vectors_have_no_left_and_right(refuses):
    config = dataclasses.replace(CONFIG, classes=False, flip=True)
    data = TensorData(torch.zeros(6, 3))
    with refuses(r"flip mirrors images, and these are of shape \(6, 3\)"):
        draw(data, torch.arange(6), 0, Schedule.linear(20), config, None, torch.device("cpu"))
