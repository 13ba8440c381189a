"""Spherical interpolation: ends, arcs, and the vectors it is hard for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddim.base.errors import InputError
from ddim.latents.slerp import slerp


def pair(seed, dtype=torch.float64, shape=(3, 2, 5)):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in "ab")


@given(seed=st.integers(0, 2**31), share=st.floats(0, 1))
def test_is_an_arc_of_constant_speed(seed, share):
    a, b = pair(seed)
    a, b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1) for x in (a, b))
    (c,) = slerp(a, b, share)
    dot = lambda x, y: (x * y).flatten(1).sum(1).clamp(-1, 1)  # noqa: E731
    assert c.flatten(1).norm(dim=1) == pytest.approx(torch.ones(3).tolist())
    assert dot(a, c).acos() == pytest.approx((share * dot(a, b).acos()).tolist(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_ends_are_the_latents_in_every_dtype(dtype):
    a, b = pair(0, dtype)
    tolerance = 4 * torch.finfo(dtype).eps
    for share, end in ((0.0, a), (1.0, b)):
        (found,) = slerp(a, b, share)
        assert found.dtype == dtype
        assert torch.allclose(found, end, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_independent(dtype):
    """Each image has its own angle; the result is that of the image alone."""
    a, b = pair(1, dtype)
    (together,) = slerp(a, b, 0.3)
    for i in range(3):
        assert torch.equal(slerp(a[i : i + 1], b[i : i + 1], 0.3)[0][0], together[i])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-12, 1e-6])
def test_parallel_vectors(dtype, gap):
    a, b = pair(2, dtype)
    near = 1.5 * a + gap * b
    (middle,) = slerp(a, near, 0.5)
    assert torch.allclose(middle, 1.25 * a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-12])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_opposite_vectors_keep_their_length(dtype, gap, share):
    a, b = pair(3, dtype, (3, 8))
    (between,) = slerp(a, -a + gap * b, share)
    norm = a.norm(dim=1)
    assert torch.allclose(between.norm(dim=1), norm, rtol=1e-4)
    cosine = (between * a).sum(1) / norm**2
    assert cosine.tolist() == pytest.approx([math.cos(math.pi * share)] * 3, abs=1e-4)


@pytest.mark.parametrize("size", [2, 3, 5, 8])
def test_between_opposites_of_any_size_and_length(size):
    a, _ = pair(6, torch.float64, (4, size))
    b = -2 * a
    assert torch.allclose(slerp(a, b, 0.0)[0], a)
    assert torch.allclose(slerp(a, b, 1.0)[0], b)
    (middle,) = slerp(a, -a, 0.5)
    assert torch.allclose(middle.norm(dim=1), a.norm(dim=1))
    assert (middle * a).sum(1).abs().max() < 1e-12
    # The second of a pair arrives too, whatever it is.
    c, d = pair(7, torch.float64, (4, size))
    assert torch.allclose(slerp((a, c), (b, d), 1.0)[1], d)


def test_half_precision_arrives_between_near_opposites():
    a, b = pair(8, torch.float16, (3, 6))
    near = -a + 0.03 * b
    assert (slerp(a, near, 1.0)[0] - near).abs().max() < 4e-3


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),
        (torch.ones(3), torch.ones(3)),
        (torch.tensor(1.0), torch.tensor(1.0)),
        ((), ()),
    ],
)
def test_what_is_no_latent_is_refused(a, b):
    with pytest.raises(InputError, match="floating-point tensors of shape"):
        slerp(a, b, 0.5)


def test_zeros_stay_finite():
    a = torch.zeros(2, 4)
    b = torch.stack([torch.zeros(4), torch.ones(4)])
    for share in (0.0, 0.5, 1.0):
        assert slerp(a, b, share)[0].isfinite().all()


def test_a_pair_turns_by_the_angle_of_its_first():
    a, b = pair(4)
    second = [x.flip(0) for x in (a, b)]
    first, other = slerp((a, second[0]), (b, second[1]), 0.4)
    assert torch.equal(first, slerp(a, b, 0.4)[0])
    # Both tensors are the same combination, image by image, which the second's own angle is not.
    for i in range(3):
        basis = torch.stack([a[i].flatten(), b[i].flatten()], 1)
        weights = torch.linalg.lstsq(basis, first[i].flatten()).solution
        expected = weights[0] * second[0][i] + weights[1] * second[1][i]
        assert torch.allclose(other[i], expected, atol=1e-12)
    assert not torch.allclose(other, slerp(*second, 0.4)[0])


def test_shapes_must_agree():
    a, b = pair(5)
    with pytest.raises(InputError, match="cannot be interpolated"):
        slerp(a, b[:2], 0.5)
    with pytest.raises(InputError, match="cannot be interpolated"):
        slerp((a, a), (b,), 0.5)
