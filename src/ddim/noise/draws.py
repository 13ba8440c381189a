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
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ddim.base.errors import InputError

__all__ = ["DeviceNoise", "Noise", "derive", "philox"]


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
        # Its words are copied to the device here, once: a copy at every step would wait for it.
        self._drawn = None
        if self.device.type == "cuda":
            words = DeviceNoise.words(self.seed, self.images).to(self.device)
            self._drawn = DeviceNoise(words, self.shape, dtype)

    def __call__(self, state: int) -> Tensor:
        """The noise for the state of that index: shape (N, *), N(0, 1)."""
        if self._drawn is not None:
            return self._drawn(state)
        size = math.prod(self.shape)
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


class DeviceNoise:
    """What :class:`Noise` draws on CUDA: a function of tensors alone, where those are.

    A graph that it was captured in draws other noise once other words were copied into its own.

    Args:
        words: seed and images, as :meth:`words` makes them.
        shape: of one image.
        dtype: of the result.
    """

    def __init__(
        self, words: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
    ) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self._keys = words[: 2 * ROUNDS].view(ROUNDS, 2)
        self._images = words[2 * ROUNDS :].view(2, -1, 1)

    @staticmethod
    def words(seed: int, images: Sequence[int]) -> Tensor:
        """A seed and the indices of N images in 32-bit words, int64 of shape (20 + 2·N,).

        The seed comes as the keys of Philox's rounds, whose computing on the device would take as
        long as one more round for each.
        """
        keys = [word for pair in _round_keys((seed & MASK, seed >> 32)) for word in pair]
        return torch.tensor([*keys, *(i & MASK for i in images), *(i >> 32 for i in images)])

    def __call__(self, state: int) -> Tensor:
        """The noise for the state of that index: shape (N, *), N(0, 1)."""
        flat = self._normal(state, math.prod(self.shape))
        return flat.view(-1, *self.shape).to(self.dtype)

    def _normal(self, state: int, size: int) -> Tensor:
        """Philox and Box-Muller, in tensor operations only; shape (N, size), float32."""
        blocks = torch.arange(-(-size // 4), device=self._images.device)
        counter = (blocks[None, :], torch.full_like(blocks, state)[None, :], *self._images)
        random = _philox(counter, [(key[0], key[1]) for key in self._keys])
        uniform = [(word.float() + 0.5) * 2.0**-32 for word in random]
        normal = []
        for u, v in (uniform[:2], uniform[2:]):
            radius = (-2 * u.log()).clamp_(min=0).sqrt()
            normal += [radius * (2 * math.pi * v).cos(), radius * (2 * math.pi * v).sin()]
        return torch.stack(normal, dim=-1).flatten(1)[:, :size].contiguous()


ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 in int64 tensors that hold 32-bit words.

    Args:
        counter: four tensors that broadcast, each element in 0..2³²-1.
        key: two words.

    Returns:
        Four int64 tensors of the broadcast shape, each element in 0..2³²-1.
    """
    return _philox(counter, _round_keys(key))


def _round_keys(key: tuple[int, int]) -> list[tuple[int, int]]:
    k0, k1 = key
    return [((k0 + n * 0x9E3779B9) & MASK, (k1 + n * 0xBB67AE85) & MASK) for n in range(ROUNDS)]


def _philox(
    counter: Sequence[Tensor], keys: Iterable[tuple[int | Tensor, int | Tensor]]
) -> tuple[Tensor, ...]:
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    for k0, k1 in keys:
        # A product of two words may wrap around int64; its 64 bits are right all the same.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            ((p1 >> 32) & MASK) ^ c1 ^ k0,
            p1 & MASK,
            ((p0 >> 32) & MASK) ^ c3 ^ k1,
            p0 & MASK,
        )
    return c0, c1, c2, c3


def derive(seed: int, *counters: int) -> int:
    """A 63-bit seed for a generator, hashed from a seed and any number of counters.

    Example:
        >>> derive(0, 1) == derive(0, 1) != derive(1, 0)
        True
    """
    data = struct.pack(f"<Q{len(counters)}q", seed, *counters)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
