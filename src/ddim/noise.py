"""Random numbers that are a pure function of what they are for.

Image i of a seed is the same image whatever the batch size, the order, the number of workers or
the point at which a run was resumed, because its noise is drawn from a counter-based generator
(Salmon et al. 2011, 'Parallel random numbers: as easy as 1, 2, 3') whose key is (seed, image)
and whose counter is the state of the tableau that the noise goes into.
"""

from __future__ import annotations

import hashlib
import struct

__all__ = ["derive"]


def derive(seed: int, *counters: int) -> int:
    """A 63-bit seed for a generator, hashed from a seed and any number of counters.

    Example:
        >>> derive(0, 1) == derive(0, 1) != derive(1, 0)
        True
    """
    data = struct.pack(f"<Q{len(counters)}q", seed, *counters)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1
