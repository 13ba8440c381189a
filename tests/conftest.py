"""What every test shares: one thread, repeatable examples, the oracle and the Gaussian lab."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

# Before torch is imported, and for the processes that tests start: the workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the user has calibrated and downloaded has no part in the tests.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ddim-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

from ddim.base.errors import InputError
from ddim.denoisers.exact import Gaussian
from ddim.noise.schedule import Schedule
from ddim.samplers.loop import final, integrate
from ddim.samplers.tableau import Tableau
from fake_hub import FakeHub, serving

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "ddim", deadline=None, max_examples=60, derandomize=True, database=None
)
hypothesis.settings.load_profile("ddim")


@pytest.fixture(scope="session")
def diffusers() -> SimpleNamespace:
    """The parts of diffusers that serve as oracle; importing them takes seconds."""
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    return SimpleNamespace(
        DDIMScheduler=DDIMScheduler, DDPMScheduler=DDPMScheduler, UNet2DModel=UNet2DModel
    )


@pytest.fixture(scope="session")
def refuses() -> Callable[[str], contextlib.AbstractContextManager[None]]:
    """``with refuses(pattern):`` expects an InputError of one line that the pattern is found in."""

    @contextlib.contextmanager
    def check(match: str) -> Iterator[None]:
        with pytest.raises(InputError, match=match) as info:
            yield
        assert "\n" not in str(info.value)

    return check


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub on this machine, asked by nobody in particular, and caches of one's own."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("platformdirs.user_cache_path", lambda *_, **__: tmp_path / "ddim-cache")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with serving() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        yield served


class GaussianLab:
    """Data N(0.3, 0.5²), whose exact flow is known; levels uniform in λ from ρ = 2 to ρ = 0.05."""

    data = Gaussian(0.3, 0.5)
    x = torch.tensor([-1.5, -0.2, 0.4, 2.0], dtype=torch.float64)

    def schedule(self, steps: int) -> Schedule:
        """Nodes 1..steps+1 are the lab's levels; node 0, the data, is not stepped to."""
        rho = np.geomspace(0.05, 2, steps + 1)
        alpha = 1 / np.sqrt(1 + rho**2)
        return Schedule.from_alpha_sigma([1, *alpha], [0, *(rho * alpha)])

    def nodes(self, steps: int) -> tuple[int, ...]:
        return tuple(range(steps + 1, 0, -1))

    def run(self, tableau: Tableau, x: Tensor | None = None) -> Tensor:
        return final(integrate(self.data, tableau, self.x if x is None else x))[0]

    def error(self, builder: Callable[..., Tableau], steps: int) -> float:
        """Largest distance from the exact solution at the last level."""
        schedule = self.schedule(steps)
        exact = self.data.flow(self.x, schedule.level(steps + 1), schedule.level(1))
        return float((self.run(builder(schedule, self.nodes(steps))) - exact).abs().max())

    def order(self, builder: Callable[..., Tableau], coarse: int = 160) -> float:
        """The measured order of convergence: the slope of log error over log steps."""
        return float(np.log2(self.error(builder, coarse) / self.error(builder, 2 * coarse)))


@pytest.fixture(scope="session")
def lab() -> GaussianLab:
    return GaussianLab()
