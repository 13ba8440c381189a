"""Noise schedules: how much signal and how much noise there is at each node.

Notation, one meaning everywhere: node ``k`` runs from 0 (clean data) to T; ``alpha`` is the signal
scale, ``sigma`` the noise scale, ``alpha_bar = alpha**2`` for variance-preserving schedules. The
DDIM paper writes α for what is ``alpha_bar`` here, and its σ is the *injected* noise; the σ of
Karras et al. (EDM) is ``rho = sigma / alpha`` here.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ddim.base.display import curve, facts_table
from ddim.base.errors import InputError, quoted, unknown

__all__ = ["SCHEDULES", "Level", "Schedule"]

Array = npt.NDArray[np.float64]


class Level(NamedTuple):
    """One noise level: ``x = alpha * x0 + sigma * eps``, seen by a network at its time ``t``."""

    alpha: float
    sigma: float
    t: float
    scale: float = 1.0

    @property
    def spread(self) -> float:
        """√((α/m)²+σ²), the standard deviation of the states that samplers start from.

        It is 1 where the schedule preserves the variance and m, the schedule's scale, is 1.
        """
        return ((self.alpha / self.scale) ** 2 + self.sigma**2) ** 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """Signal and noise scales at the nodes k = 0..T, in float64.

    Attributes:
        alpha: signal scale, shape (T+1,); ``alpha[0] == 1``.
        sigma: noise scale, shape (T+1,); ``sigma[0] == 0``.
        spec: how the schedule was made, as plain JSON values; :meth:`from_spec` makes it again.
        scale: m, where it is that of a network trained on m·x0, told for x0: noise stands for data
            of variance 1 in the range that the network knows.

    Raises:
        InputError: unless α₀ = 1, σ₀ = 0, everything is finite and σ/α increases strictly.
    """

    alpha: Array
    sigma: Array
    spec: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scale: float = 1.0

    def __post_init__(self) -> None:
        alpha = np.array(self.alpha, dtype=np.float64)
        sigma = np.array(self.sigma, dtype=np.float64)
        if alpha.ndim != 1 or alpha.shape != sigma.shape or len(alpha) < 2:
            raise InputError(
                f"a schedule needs two arrays of one length ≥ 2: {alpha.shape}, {sigma.shape}"
            )
        if not (np.isfinite(alpha).all() and np.isfinite(sigma).all()):
            raise InputError("a schedule must be finite everywhere")
        if alpha[0] != 1 or sigma[0] != 0:
            raise InputError(f"node 0 is clean data: α₀ = 1 and σ₀ = 0, not {alpha[0]}, {sigma[0]}")
        if (alpha < 0).any() or (alpha[:-1] == 0).any():
            raise InputError("α must be positive; only the last node may have α = 0")
        # ρ_k < ρ_{k+1}, multiplied out so that α_T = 0 (ρ = ∞) compares too.
        if not (sigma[:-1] * alpha[1:] < sigma[1:] * alpha[:-1]).all():
            raise InputError("σ/α must increase strictly from node 0 to node T")
        alpha.setflags(write=False)
        sigma.setflags(write=False)
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "sigma", sigma)
        spec = dict(self.spec) or {
            "kind": "alpha-sigma",
            "alpha": alpha.tolist(),
            "sigma": sigma.tolist(),
            **({} if self.scale == 1 else {"scale": self.scale}),
        }
        object.__setattr__(self, "spec", spec)

    # -- constructors ---------------------------------------------------------------------------

    @classmethod
    def linear(
        cls,
        T: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        *,
        scaled: bool = False,
    ) -> Schedule:
        """β equally spaced (Ho et al. 2020, section 4, https://arxiv.org/abs/2006.11239).

        Args:
            T: number of noising steps, ≥ 1.
            beta_start: β of the first step.
            beta_end: β of the last step.
            scaled: multiply both by 1000/T, which keeps ᾱ_T about the same for T of 100 and more
                (4e-5, at T = 100 half of it); for fewer it falls, and at T = 1000·beta_end the
                last β is 1: zero terminal SNR.

        Example:
            >>> Schedule.linear(500, scaled=True).betas[[0, -1]].round(6).tolist()
            [0.0002, 0.04]
        """
        scale = 1000 / _at_least_one(T) if scaled else 1.0
        betas = np.linspace(beta_start * scale, beta_end * scale, _at_least_one(T))
        spec = {"beta_start": beta_start, "beta_end": beta_end, "scaled": scaled}
        return cls._from_betas(betas, {"kind": "linear", "T": T, **spec})

    @classmethod
    def scaled_linear(
        cls, T: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> Schedule:
        """√β equally spaced (latent diffusion, Rombach et al. 2022)."""
        if min(beta_start, beta_end) < 0:
            raise InputError(f"every β must be in (0, 1]: not from {beta_start} to {beta_end}")
        betas = np.linspace(beta_start**0.5, beta_end**0.5, _at_least_one(T)) ** 2
        spec = {"kind": "scaled-linear", "T": T, "beta_start": beta_start, "beta_end": beta_end}
        return cls._from_betas(betas, spec)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
        """ᾱ a squared cosine (Nichol and Dhariwal 2021, equation 17, https://arxiv.org/abs/2102.09672)."""
        u = np.arange(_at_least_one(T) + 1) / T
        f = np.cos((u + s) / (1 + s) * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
        return cls._from_betas(betas, {"kind": "cosine", "T": T, "s": s, "max_beta": max_beta})

    @classmethod
    def sigmoid(
        cls,
        T: int = 1000,
        start: float = -3,
        end: float = 3,
        tau: float = 1,
        max_beta: float = 0.999,
    ) -> Schedule:
        """ᾱ a sigmoid in time (Jabri, Fleet, Chen 2022, https://arxiv.org/abs/2212.11972)."""
        u = np.arange(_at_least_one(T) + 1) / T
        v = 1 / (1 + np.exp(-(u * (end - start) + start) / tau))
        alpha_bar = (v[-1] - v) / (v[-1] - v[0])
        betas = np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], max_beta)
        spec = {"start": start, "end": end, "tau": tau, "max_beta": max_beta}
        return cls._from_betas(betas, {"kind": "sigmoid", "T": T, **spec})

    @classmethod
    def flow(cls, T: int = 1000) -> Schedule:
        """Straight lines: α = 1 - k/T, σ = k/T (Lipman et al. 2022, https://arxiv.org/abs/2210.02747)."""
        u = np.arange(_at_least_one(T) + 1) / T
        return cls(1 - u, u, {"kind": "flow", "T": T})

    @classmethod
    def from_betas(cls, betas: npt.ArrayLike) -> Schedule:
        """β of the steps 1..T, shape (T,), each in (0, 1]."""
        betas = np.asarray(betas, dtype=np.float64)
        return cls._from_betas(betas, {"kind": "betas", "betas": betas.tolist()})

    @classmethod
    def _from_betas(cls, betas: Array, spec: Mapping[str, Any]) -> Schedule:
        if betas.ndim != 1 or len(betas) == 0:
            raise InputError(f"betas must be a list of numbers, not an array of {betas.shape}")
        if not ((betas > 0) & (betas <= 1)).all():
            raise InputError(
                f"every β must be in (0, 1]: they run from {betas.min()} to {betas.max()}"
            )
        # In logarithms, because 1 - ᾱ near the data would cancel.
        with np.errstate(divide="ignore"):
            log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        sigma = np.sqrt(np.abs(np.expm1(log_alpha_bar)))  # abs, because -expm1(0) is -0
        return cls(np.exp(log_alpha_bar / 2), sigma, spec)

    @classmethod
    def from_alpha_bar(cls, alpha_bar: npt.ArrayLike) -> Schedule:
        """ᾱ at the nodes 1..T or 0..T (then the first is 1), decreasing strictly."""
        alpha_bar = np.asarray(alpha_bar, dtype=np.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) == 0:
            raise InputError(
                f"alpha_bar must be a list of numbers, not an array of {alpha_bar.shape}"
            )
        if alpha_bar[0] != 1:
            alpha_bar = np.concatenate([[1.0], alpha_bar])
        if not ((alpha_bar >= 0) & (alpha_bar <= 1)).all():
            raise InputError("ᾱ must be in [0, 1]")
        return cls(
            np.sqrt(alpha_bar),
            np.sqrt(1 - alpha_bar),
            {"kind": "alpha-bar", "alpha_bar": alpha_bar.tolist()},
        )

    @classmethod
    def from_alpha_sigma(
        cls, alpha: npt.ArrayLike, sigma: npt.ArrayLike, scale: float = 1.0
    ) -> Schedule:
        """Any α and σ at the nodes 0..T; not necessarily variance-preserving."""
        first, second = (np.asarray(values, dtype=np.float64) for values in (alpha, sigma))
        return cls(first, second, scale=scale)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Schedule:
        """The inverse of :attr:`spec`.

        Raises:
            InputError: unknown kind, or arguments that do not belong to it.
        """
        arguments = dict(spec)
        kind = str(arguments.pop("kind", ""))
        rescaled = arguments.pop("zero_terminal_snr", False)
        if not isinstance(rescaled, bool):
            raise InputError(f"zero_terminal_snr is true or false, not {quoted(rescaled)}")
        if kind not in SCHEDULES:
            raise unknown("schedule", kind, SCHEDULES)
        try:
            with np.errstate(all="ignore"):  # what is no number then is refused as no β
                schedule = SCHEDULES[kind](**arguments)
        except InputError:
            raise
        except (TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"schedule {quoted(kind)}: {error}") from None
        return schedule.rescaled_to_zero_snr() if rescaled else schedule

    def rescaled_to_zero_snr(self) -> Schedule:
        """Shift and stretch √ᾱ so that ᾱ_T = 0 and ᾱ₁ stays (Lin et al. 2023, algorithm 1).

        https://arxiv.org/abs/2305.08891. An ε-predicting network has nothing to say at α = 0.

        Raises:
            InputError: for a schedule that is not variance-preserving.
        """
        if not self.variance_preserving:
            raise InputError("only a variance-preserving schedule can be rescaled to zero SNR")
        if self.alpha[-1] == 0:
            return self
        if self.T == 1:
            raise InputError("a schedule of one step has no ᾱ₁ to keep beside ᾱ_T = 0")
        first, last = self.alpha[1], self.alpha[-1]
        alpha = self.alpha.copy()
        alpha[1:] = (alpha[1:] - last) * first / (first - last)
        alpha[-1] = 0.0
        sigma = np.sqrt((1 - alpha) * (1 + alpha))
        return Schedule(alpha, sigma, {**self.spec, "zero_terminal_snr": True})

    # -- derived --------------------------------------------------------------------------------

    @property
    def T(self) -> int:  # noqa: N802
        """Number of noising steps; nodes are 0..T."""
        return len(self.alpha) - 1

    @functools.cached_property
    def variance_preserving(self) -> bool:
        """Whether α² + σ² = 1 at every node."""
        return bool(np.allclose(self.alpha**2 + self.sigma**2, 1, rtol=0, atol=1e-9))

    @property
    def alpha_bar(self) -> Array:
        """ᾱ = α², shape (T+1,)."""
        return self.alpha**2

    @property
    def betas(self) -> Array:
        """β of the steps 1..T, shape (T,): 1 - ᾱ_k/ᾱ_{k-1}."""
        return 1 - (self.alpha[1:] / self.alpha[:-1]) ** 2

    @functools.cached_property
    def rho(self) -> Array:
        """ρ = σ/α, shape (T+1,); ∞ where α = 0."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    @functools.cached_property
    def lam(self) -> Array:
        """λ = log(α/σ), half the log signal-to-noise ratio, shape (T+1,); ∞ at node 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    @property
    def snr(self) -> Array:
        """α²/σ², shape (T+1,); ∞ at node 0."""
        with np.errstate(divide="ignore"):
            return self.alpha**2 / self.sigma**2

    def level(self, k: int) -> Level:
        """The level of node k; its network time is t = k - 1, which node 0 has none of."""
        if not 0 <= k <= self.T:
            raise InputError(f"node {k} is outside 0..{self.T}")
        return Level(float(self.alpha[k]), float(self.sigma[k]), float(k - 1), self.scale)

    def level_at(self, lam: float) -> Level:
        """The level where log(α/σ) is ``lam``, between nodes too.

        α and σ follow exactly where the schedule preserves the variance; t = k - 1 with k
        interpolated linearly in log α over the nodes 1..T, as in DPM-Solver's discrete schedule
        (Lu et al. 2022, appendix D.4, https://arxiv.org/abs/2206.00927).

        Raises:
            InputError: outside the finite λ of the nodes 1..T.
        """
        # Plain lists and bisection: NumPy takes ten times as long over single numbers.
        falling_lam, falling_log_alpha = self._finite
        if not falling_lam[0] - 1e-9 <= -lam <= falling_lam[-1] + 1e-9:
            raise InputError(f"λ = {lam:g} is outside {-falling_lam[-1]:g}..{-falling_lam[0]:g}")
        if self.variance_preserving:
            log_alpha = -0.5 * math.log1p(math.exp(-2 * lam))
            k = 1 + _position(falling_log_alpha, -log_alpha)
        else:
            # Both linear in λ, so that k is linear in log α here too; α itself may be constant.
            at = _position(falling_lam, -lam)
            low = min(int(at), len(falling_lam) - 2) if len(falling_lam) > 1 else 0
            high = min(low + 1, len(falling_lam) - 1)
            before, after = falling_log_alpha[low], falling_log_alpha[high]
            log_alpha = -(before + (at - low) * (after - before))
            k = 1 + at
        alpha = math.exp(log_alpha)
        return Level(alpha, alpha * math.exp(-lam), k - 1, self.scale)

    @functools.cached_property
    def _finite(self) -> tuple[list[float], list[float]]:
        """-λ and -log α of the nodes from 1 on where λ is finite; both rise."""
        finite = slice(1, self.T if self.alpha[-1] == 0 else self.T + 1)
        return (-self.lam[finite]).tolist(), (-np.log(self.alpha[finite])).tolist()

    def __repr__(self) -> str:
        parts = []
        for key, value in self.spec.items():
            array = isinstance(value, Sequence) and not isinstance(value, str)
            parts.append(f"{key}=[…{len(value)}]" if array else f"{key}={value}")
        return f"Schedule({', '.join(parts)})"

    def _repr_html_(self) -> str:
        every = -(-self.T // 200)
        nodes = sorted({*range(1, self.T + 1, every), self.T})
        finite = [k for k in nodes if self.alpha[k] > 0]
        curves = curve("ᾱ", [0, *nodes], [1.0, *self.alpha_bar[nodes].tolist()], "node k")
        if finite:
            snr = (2 * self.lam[finite]).tolist()
            curves += curve("log-SNR = log(α²/σ²)", finite, snr, "node k")
        return facts_table("Schedule", {**self.spec, "T": self.T}, f"<div>{curves}</div>")


def _position(rising: list[float], value: float) -> float:
    """Where a value lies among rising ones, 0 at the first; linear between, clamped."""
    high = bisect.bisect_left(rising, value)
    if high in (0, len(rising)):
        return float(max(high - 1, 0))
    before, after = rising[high - 1], rising[high]
    return high - 1 + (value - before) / (after - before)


def _at_least_one(T: int) -> int:
    if T < 1:
        raise InputError(f"T must be at least 1, not {T}")
    if T > _LONGEST:
        raise InputError(f"T must be at most {_LONGEST:,}, not {T}")
    return T


_LONGEST = 1_000_000
"""More noising steps than any schedule has."""


SCHEDULES = {
    "linear": Schedule.linear,
    "scaled-linear": Schedule.scaled_linear,
    "cosine": Schedule.cosine,
    "sigmoid": Schedule.sigmoid,
    "flow": Schedule.flow,
    "betas": Schedule.from_betas,
    "alpha-bar": Schedule.from_alpha_bar,
    "alpha-sigma": Schedule.from_alpha_sigma,
}
"""Constructors by the ``kind`` of a spec."""
