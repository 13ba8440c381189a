"""Random numbers that are a pure function of what they are for.

Image i of a seed is the same image whatever the batch size, the order, the number of workers or
the point at which a run was resumed, because its noise comes from a counter-based generator
(Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*,
https://doi.org/10.1145/2063384.2063405) whose key is (seed, image) and whose counter is the state
of the tableau that the noise goes into.

On the CPU that is NumPy's Philox: its key holds both numbers whole, so that no two images of a
large run can meet (a reseeded ``torch.Generator`` keeps 32 bits of its seed, and among 50,000
images two would probably be the same one). On CUDA it is Philox in integer tensor operations,
which needs no host and can be captured in a graph. The bits are the same on every machine with a
device of that type and this software, not across types.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError

__all__ = ["Noise", "derive", "philox"]


class Noise:
    """Standard normal noise for given images of a seed.

    Sampling starts from it times √(α²+σ²): :meth:`ddim.Tableau.start`.

    Args:
        seed: from 0 to 2⁶⁴ - 1.
        images: the index of each image in the batch, each from 0 to 2⁶⁴ - 1.
        shape: of one image.
        device: where the noise is wanted.
        dtype: of the result. The numbers are drawn in float32 and cast, so that an image has the
            same noise in every precision.

    Example:
        >>> one, two = Noise(0, [3, 4], (2, 2)), Noise(0, [4], (2, 2))
        >>> bool((one(0)[1] == two(0)[0]).all())
        True
    """

    def __init__(
        self,
        seed: int,
        images: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        for name, value in (("seed", seed), *(("image index", i) for i in images)):
            if not (isinstance(value, int | np.integer) and 0 <= value < 2**64):
                raise InputError(f"the {name} must be from 0 to 2⁶⁴ - 1 and whole, not {value}")
        self.seed, self.images, self.shape = int(seed), tuple(map(int, images)), tuple(shape)
        self.device, self.dtype = torch.device(device), dtype
        # Copied to the device here, once: a copy at every step would wait for it.
        self._words = _words(self.images, self.device) if self.device.type == "cuda" else None

    def __call__(self, state: int) -> Tensor:
        """The noise for the state of that index: shape (N, *), N(0, 1)."""
        size = math.prod(self.shape)
        if self._words is not None:
            flat = _normal_on_device(self.seed, self._words, state, size)
        else:
            flat = torch.empty(len(self.images), size, dtype=torch.float32, device="cpu")
            # One for all: making one takes longer than drawing a few numbers.
            bits = np.random.Philox(key=0)
            # As uint64, because NumPy would take a list with numbers above 2⁶³ through float64.
            key = np.array([self.seed, 0], dtype=np.uint64)
            counter = np.array([0, 0, 0, state], dtype=np.uint64)
            begun = {**bits.state, "state": {"counter": counter, "key": key}}
            generator = np.random.Generator(bits)
            for row, image in zip(flat.numpy(), self.images, strict=True):
                key[1] = image
                bits.state = begun  # pyright: ignore[reportAttributeAccessIssue]
                generator.standard_normal(dtype=np.float32, out=row)
        return flat.view(len(self.images), *self.shape).to(self.device, self.dtype)


def _words(images: Sequence[int], device: torch.device) -> Tensor:
    """The lower and the upper 32 bits of the images' indices, int64 of shape (2, N, 1)."""
    words = [[i & 0xFFFFFFFF for i in images], [i >> 32 for i in images]]
    return torch.tensor(words, device=device)[:, :, None]


def _normal_on_device(seed: int, words: Tensor, state: int, size: int) -> Tensor:
    """Philox and Box-Muller, in tensor operations only; shape (N, size), float32."""
    blocks = torch.arange(-(-size // 4), device=words.device)
    counter = (blocks[None, :], torch.full_like(blocks, state)[None, :], words[0], words[1])
    random = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    uniform = [(word.float() + 0.5) * 2.0**-32 for word in random]
    normal = []
    for u, v in (uniform[:2], uniform[2:]):
        radius = (-2 * u.log()).clamp_(min=0).sqrt()
        normal += [radius * (2 * math.pi * v).cos(), radius * (2 * math.pi * v).sin()]
    return torch.stack(normal, dim=-1).flatten(1)[:, :size].contiguous()


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 in int64 tensors that hold 32-bit words.

    Args:
        counter: four tensors that broadcast, each element in 0..2³²-1.
        key: two words.

    Returns:
        Four int64 tensors of the broadcast shape, each element in 0..2³²-1.
    """
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(10):
        # A product of two words may wrap around int64; its 64 bits are right all the same.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & mask) ^ c1 ^ k0,
            p1 & mask,
            ((p0 >> 32) & mask) ^ c3 ^ k1,
            p0 & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return c0, c1, c2, c3


def derive(seed: int, *counters: int) -> int:
    """A 63-bit seed for a generator, hashed from a seed and any number of counters.

    Example:
        >>> derive(0, 1) == derive(0, 1) != derive(1, 0)
        True
    """
    data = struct.pack(f"<Q{len(counters)}q", seed, *counters)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
