"""A sampler that answers as a scheduler of diffusers, which importing this module needs."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.checkpoints.scheduler import PREDICTION, parse_scheduler, scheduler_config
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.prediction import Prediction
from ddim.denoisers.target import Target
from ddim.interop.stepping import Run, call_times, calls_a_step, noise_of
from ddim.noise.nodes import make_nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["TableauScheduler"]


class TableauScheduler(SchedulerMixin, ConfigMixin):
    """A table of numbers that answers as a scheduler; :func:`ddim.diffusers_scheduler` makes it.

    Its configuration says to diffusers' DDIMScheduler what the noise is, and to
    ``from_pretrained`` all of it.

    Args:
        num_train_timesteps: T; this and those up to ``sample_max_value`` as diffusers'
            DDIMScheduler has them.
        beta_start: β of the first step.
        beta_end: β of the last step.
        beta_schedule: how β goes from one to the other.
        trained_betas: β themselves.
        rescale_betas_zero_snr: whether α ends at 0.
        prediction_type: diffusers' name of the target, or ``flow``.
        clip_sample: whether x0 is clipped.
        clip_sample_range: to plus and minus what.
        thresholding: whether x0 is thresholded.
        dynamic_thresholding_ratio: the quantile.
        sample_max_value: the largest threshold.
        stale_eps: keep the eps of the unclipped x0, as diffusers does by default.
        timestep_spacing: for other schedulers made of this configuration; without effect here.
        set_alpha_to_one: the same.
        steps_offset: the same.
        method: the sampler, as text.
        schedule: the noise schedule where the betas cannot say it, as :attr:`Schedule.spec`.

    Attributes:
        schedule: the noise schedule.
        target: what the network outputs.
        clipping: what is done to the predicted x0.
        sampler: what runs.
        order: pipelines that begin later begin at the timestep of this many times the step.
        timesteps: what the network is called at, in this order.
        init_noise_sigma: the standard deviation of the first state.
        alphas_cumprod: ᾱ at t = 0..T-1, float32, shape (T,); of variance-preserving schedules, as
            are ``alphas`` and ``betas``.

    Raises:
        InputError: values that make no schedule, unknown names, or a saved method that is a
            file of the user's, which opening a folder does not run.
    """

    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        stale_eps: bool = False,
        timestep_spacing: str = "trailing",
        set_alpha_to_one: bool = True,
        steps_offset: int = 1,
        method: str | Sampler = "ddim",
        schedule: Mapping[str, Any] | None = None,
    ) -> None:
        self.schedule, self.target, clipping = parse_scheduler(self.config)
        self.clipping = dataclasses.replace(clipping, stale_eps=stale_eps)
        if isinstance(method, str) and ".py:" in method:
            raise InputError(
                f"{quoted(method)} is a file of yours, which a saved scheduler does not run: give "
                "it to ddim.diffusers_scheduler again"
            )
        self.sampler = Sampler.parse(method)
        self.register_to_config(method=str(self.sampler))
        # Numbers that do not fit are refused here and not in the middle of a pipeline.
        nodes = _trial(self.schedule, self.sampler)
        self.order = calls_a_step(self.sampler.replace(nodes=nodes).tableau(self.schedule), nodes)
        self.timesteps = torch.arange(self.schedule.T - 1, -1, -1)
        self.init_noise_sigma = self.schedule.level(self.schedule.T).spread
        self.num_inference_steps: int | None = None
        self.begin_index: int | None = None
        self.nodes: tuple[int, ...] = ()
        self.tableau: Tableau | None = None
        self.finished = False
        self._run: Run | None = None
        if self.schedule.variance_preserving:
            self.alphas_cumprod = torch.tensor(self.schedule.alpha_bar[1:], dtype=torch.float32)
            self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
            self.alphas = 1 - self.betas

    @classmethod
    def of(
        cls, schedule: Schedule, target: Target, clipping: Clipping, sampler: Sampler
    ) -> TableauScheduler:
        """The one of these parts, with a configuration that says them."""
        plain = schedule.variance_preserving and target is not Target.FLOW
        facts = scheduler_config(
            schedule if plain else Schedule.linear(schedule.T),
            target if plain else Target.EPS,
            clipping,
        )
        facts = {key: value for key, value in facts.items() if not key.startswith("_")}
        if not (plain and np.array_equal(parse_scheduler(facts)[0].alpha, schedule.alpha)):
            facts["schedule"] = dict(schedule.spec)
        if not plain:
            facts["prediction_type"] = next(k for k, v in PREDICTION.items() if v is target)
        # Stable Diffusion's pipelines warn of any other offset.
        own = {"steps_offset": 1, "stale_eps": clipping.stale_eps, "method": sampler}
        return cls(**{**facts, **own})

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Choose the nodes and build the table.

        Args:
            num_inference_steps: S.
            device: where ``timesteps`` will be.
            timesteps: instead of S, the times of the nodes, falling; the data follow.

        Raises:
            InputError: both or neither; or nodes other than those that the sampler was made with.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("give either the number of steps or the timesteps themselves")
        if timesteps is None:
            asked = Sampler.parse(self.sampler, num_inference_steps)
        else:
            asked = self._listed(timesteps)
        self.nodes = asked.place(self.schedule)
        self.tableau = asked.tableau(self.schedule)
        self.order = calls_a_step(self.tableau, self.nodes)
        times = torch.tensor(call_times(self.tableau))
        whole = bool((times == times.round()).all())
        self.timesteps = (times.long() if whole else times).to(device)
        self.num_inference_steps = num_inference_steps or len(self.nodes) - 1
        self.init_noise_sigma = self.tableau.initial[0].level.spread
        self.begin_index, self.finished = None, False
        self._run = None

    def _listed(self, timesteps: Sequence[int] | Tensor) -> Sampler:
        """The sampler on nodes at these times; they take the place of a family of nodes."""
        times = [float(t) for t in timesteps]
        T = self.schedule.T
        falling = all(a > b for a, b in itertools.pairwise(times))
        if not (times and falling and all(t in range(T) for t in times)):
            raise InputError(
                f"timesteps are whole numbers that fall, from {T - 1} at most to 0 at least, not "
                f"{quoted(times)}"
            )
        nodes = (*(int(t) + 1 for t in times), 0)
        if isinstance(self.sampler.nodes, str):
            return Sampler.parse(self.sampler, len(times)).replace(nodes=nodes)
        return Sampler.parse(self.sampler, nodes=nodes)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say at which of the timesteps the run will begin, as image-to-image pipelines do."""
        if not 0 <= begin_index < len(self.timesteps):
            raise InputError(
                f"there are {len(self.timesteps)} timesteps: none has the index {begin_index}"
            )
        self.begin_index = begin_index

    def previous_timestep(self, timestep: int | Tensor) -> Tensor:
        """The time of the node that the step from this time leads to; -1 is the data."""
        nodes = self.nodes or range(self.schedule.T, -1, -1)
        rises, t = nodes[-1] > nodes[0], float(timestep)
        after = [k - 1 for k in nodes if (k - 1 > t if rises else k - 1 < t)]
        if not after:
            raise InputError(f"no step begins at timestep {t:g}")
        return torch.tensor(after[0], device=self.timesteps.device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """States are scaled as the network wants them already."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Take the network's output at the state that was asked about; return the next one.

        Without ``set_timesteps`` the run is over all T of them.

        Args:
            model_output: shape (N, C, *), or (N, 2C, *) with a learned variance.
            timestep: the time of the state.
            sample: the state, shape (N, C, *).
            eta: η; pipelines leave it at 0, any other must be that of the sampler.
            use_clipped_model_output: whether eps is recomputed from a clipped x0, which diffusers'
                False does not; None as the scheduler was made.
            generator: of the noise that the step draws.
            variance_noise: that noise itself, shape (N, C, *).
            return_dict: False returns a tuple.

        Returns:
            ``prev_sample``, and ``pred_original_sample``, x0 as it was predicted and clipped.

        Raises:
            InputError: arguments that would not be used as they are given; another state's turn.
        """
        if self.tableau is None:
            self.set_timesteps(self.sampler.steps or self.schedule.T)
        assert self.tableau is not None
        self._check(model_output, sample, eta, generator, variance_noise)
        draw = noise_of(sample, generator, variance_noise)
        if self._run is None:
            self._start(float(timestep))
            self._run = Run(self.tableau, sample, draw)
        level = self._run.level
        assert level is not None
        if abs(float(timestep) - level.t) > 0.5:
            raise InputError(
                f"step {float(timestep):g} was given where the sampler is at {level.t:g}: take "
                "all timesteps in their order, each once"
            )
        prediction = self._predict(model_output, sample, level, use_clipped_model_output)
        state = self._run.answer(prediction, sample, draw)
        if self._run.level is None:
            self._run, self.finished = None, True
        found = DDIMSchedulerOutput(prev_sample=state, pred_original_sample=prediction.x0)
        return found if return_dict else (state, prediction.x0)

    def _check(
        self, output: Tensor, sample: Tensor, eta: Any, generator: Any, noise: Tensor | None
    ) -> None:
        """Refuse arguments of a step that it would not use as they are given."""
        assert self.tableau is not None
        if not isinstance(eta, int | float):
            raise InputError(f"eta is a number, not {quoted(eta)}: give what follows by name")
        if eta and eta != self.tableau.options.get("eta"):
            raise InputError(
                f"this sampler was made without η = {eta:g}: give it when it is made, as in "
                f'diffusers_scheduler(pipe.scheduler, "ddim", eta={eta:g})'
            )
        n, channels, *rest = sample.shape
        if tuple(output.shape) not in ((n, channels, *rest), (n, 2 * channels, *rest)):
            raise InputError(
                f"the network returned {tuple(output.shape)} for a state of {tuple(sample.shape)}"
            )
        if noise is None:
            return
        if generator is not None:
            raise InputError("give either a generator or variance_noise: the step draws once")
        if not self.tableau.stochastic:
            raise InputError(f"{self.tableau.method} draws no noise: variance_noise has no use")
        if noise.shape != sample.shape:
            raise InputError(
                f"variance_noise is {tuple(noise.shape)} for a state of {tuple(sample.shape)}"
            )

    def _start(self, time: float) -> None:
        """Begin at a later one of the timesteps, as image-to-image pipelines do."""
        assert self.tableau is not None
        if self.begin_index is not None:
            said = float(self.timesteps[self.begin_index])
            if abs(said - time) > 0.5:
                raise InputError(
                    f"step {time:g} was given where set_begin_index said {said:g}, the timestep of "
                    f"index {self.begin_index}"
                )
        if abs(time - call_times(self.tableau)[0]) <= 0.5:
            return
        starts = [n for n, k in enumerate(self.nodes[:-1]) if abs(k - 1 - time) <= 0.5]
        if not starts or self.finished:
            raise InputError(
                f"timestep {time:g} is no node to begin at: give timesteps from the list of "
                "set_timesteps, which is called anew for every run"
            )
        whole = self.sampler.replace(nodes=self.nodes)
        self.tableau = whole.tail(self.nodes, starts[0]).tableau(self.schedule)

    def _predict(
        self, output: Tensor, sample: Tensor, level: Level, recomputed: bool | None
    ) -> Prediction:
        var = None
        if output.shape[1] == 2 * sample.shape[1]:
            output, var = output.chunk(2, dim=1)
            var = (var + 1) / 2
        found = Prediction(*self.target.split(output, sample, level), var)
        clipping = self.clipping
        if recomputed is not None:
            clipping = dataclasses.replace(clipping, stale_eps=not recomputed)
        return clipping.wrap(lambda x, level: found)(sample, level)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """α·x0 + σ·noise at the times given, one for each image."""
        alpha, sigma = self._scales(original_samples, timesteps)
        return alpha * original_samples + sigma * noise

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The target v = α·noise - σ·x0 at the times given, one for each image."""
        alpha, sigma = self._scales(sample, timesteps)
        return alpha * noise - sigma * sample

    def _scales(self, like: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(α, σ) at times of nodes, to broadcast against images."""
        times = torch.as_tensor(timesteps).detach().cpu().double().reshape(-1)
        k = times.long() + 1
        if not ((times == times.round()) & (k >= 0) & (k <= self.schedule.T)).all():
            raise InputError(
                f"timesteps are whole numbers from 0 to {self.schedule.T - 1}, not "
                f"{quoted(times.tolist())}"
            )
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = (
            torch.as_tensor(values[k.numpy()]).to(like).view(shape)
            for values in (self.schedule.alpha, self.schedule.sigma)
        )
        return alpha, sigma

    def __len__(self) -> int:
        return self.schedule.T

    def __getstate__(self) -> dict[str, Any]:
        if self._run is not None:
            raise InputError(
                "a scheduler is copied before or after a run, not during one: call set_timesteps"
            )
        return self.__dict__


def _trial(schedule: Schedule, sampler: Sampler) -> tuple[int, ...]:
    """The sampler's own nodes; of a family that has no number of steps yet, a few even ones."""
    if not isinstance(sampler.nodes, str):
        return sampler.place(schedule)
    return make_nodes(schedule, "uniform", sampler.steps or min(6, schedule.T))
