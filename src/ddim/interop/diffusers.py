"""Samplers of this package inside diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ddim.base.errors import InputError, quoted
from ddim.checkpoints.scheduler import parse_scheduler, scheduler_config
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.prediction import Prediction
from ddim.denoisers.target import Target
from ddim.noise.nodes import make_nodes
from ddim.noise.schedule import Level, Schedule
from ddim.samplers.loop import Request, Step, run
from ddim.samplers.sampler import Sampler

__all__ = ["diffusers_scheduler"]


def diffusers_scheduler(
    source: Any,
    method: str | Sampler = "ddim",
    *,
    steps: int | None = None,
    nodes: str | Sequence[int] | None = None,
    target: Target | str | None = None,
    clipping: Clipping | None = None,
    **options: object,
) -> Any:
    """A sampler as a scheduler of diffusers.

    ``pipe.scheduler = ddim.diffusers_scheduler(pipe.scheduler, "unipc", order=3)``.

    The pipeline calls the network, adds its guidance and decodes its latents as ever; what it
    gives to ``step`` is put into the sampler's table. With a method that calls the network more
    than once a step there are more ``timesteps`` than steps. Noise, where a method draws it, comes
    from the pipeline's ``generator``.

    Args:
        source: the pipeline's scheduler, from whose configuration the noise schedule, the target
            and the clipping are read; or a :class:`~ddim.Schedule`.
        method: a :class:`~ddim.Sampler`, or one as text: ``dpmpp:order=3``.
        steps: S, where it is fixed: the pipeline must then ask for as many.
        nodes: a family's name, with which the pipeline chooses the number of steps, or the nodes
            themselves, whose number it must then ask for.
        target: what the network outputs; that of the source if None, else ε.
        clipping: of the predicted x0; that of the source if None, else none.
        options: the method's own, such as ``order``.

    Raises:
        InputError: unknown names, a scheduler of another kind of noise, diffusers not installed.
    """
    try:
        from diffusers.configuration_utils import ConfigMixin
        from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
        from diffusers.utils.torch_utils import randn_tensor
    except ImportError:
        raise InputError("this is for diffusers, which is not installed") from None
    sampler = Sampler.parse(method, steps, nodes, **options)
    if isinstance(source, Schedule):
        schedule, said, clipped = source, Target.EPS, Clipping()
    elif not hasattr(source, "config"):
        raise InputError(f"a scheduler of diffusers or a Schedule is needed, not {quoted(source)}")
    else:
        name = getattr(source, "noise_of", type(source).__name__)
        schedule, said, clipped = parse_scheduler({**source.config, "_class_name": name})
    target = said if target is None else Target.named(target)
    clipping = clipping or clipped
    # Unknown names are refused here and not in the middle of a pipeline.
    calls = _calls_a_step(schedule, sampler)
    if schedule.variance_preserving and target is not Target.FLOW:
        facts = scheduler_config(schedule, target, clipping)
        facts = {key: value for key, value in facts.items() if not key.startswith("_")}
    else:
        facts = {"num_train_timesteps": schedule.T, "prediction_type": target.value}

    class TableauScheduler(SchedulerMixin, ConfigMixin):
        """A table of numbers that answers as a scheduler."""

        config_name = "scheduler_config.json"
        # Pipelines that begin later begin at the timestep of this many times the step.
        order = calls
        noise_of = "DDIMScheduler"

        def __init__(self) -> None:
            # What another scheduler, made from this one's configuration, must know of the noise.
            self.register_to_config(**{**facts, "method": str(sampler), "steps_offset": 1})
            self.timesteps = torch.arange(schedule.T - 1, -1, -1)
            self.init_noise_sigma = schedule.level(schedule.T).spread

        def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
            """Choose the nodes and build the table."""
            asked = Sampler.parse(sampler, num_inference_steps)
            self.nodes, self.finished = asked.place(schedule), False
            self.tableau = asked.tableau(schedule)
            levels = [self.tableau.at(i) for i in self.tableau.evaluated]
            times = torch.tensor([level.t for level in levels if level is not None])
            whole = bool((times == times.round()).all())
            self.timesteps = (times.long() if whole else times).to(device)
            self.num_inference_steps = num_inference_steps
            self.init_noise_sigma = self.tableau.initial[0].level.spread
            self._exchange = self._request = None

        def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
            """States are scaled as the network wants them already."""
            return sample

        def step(
            self,
            model_output: Tensor,
            timestep: Any,
            sample: Tensor,
            generator: Any = None,
            return_dict: bool = True,
            eta: float = 0.0,
            **_: Any,
        ) -> Any:
            """Take the network's output at the state that was asked about; return the next one.

            Pipelines give their own η, which is 0 unless they are told; any other must be that of
            the sampler.
            """
            if not hasattr(self, "tableau"):
                raise InputError("set_timesteps comes before the first step")
            if eta and eta != self.tableau.options.get("eta"):
                raise InputError(
                    f"this sampler was made without η = {eta:g}: give it when it is made, as in "
                    f'diffusers_scheduler(pipe.scheduler, "ddim", eta={eta:g})'
                )
            if self._exchange is None:
                self._start(float(timestep))
                shape, device, dtype = sample.shape, sample.device, sample.dtype

                def noise(state: int) -> Tensor:
                    return randn_tensor(shape, generator=generator, device=device, dtype=dtype)

                self._exchange = run(self.tableau, sample, noise)
                self._request = self._until_asked(next(self._exchange))[0]
            assert self._request is not None
            level = self._request.level
            if abs(float(timestep) - level.t) > 0.5:
                raise InputError(
                    f"step {float(timestep):g} was given where the sampler is at {level.t:g}: take "
                    "all timesteps in their order, each once"
                )
            # What the pipeline did to the state in between, such as inpainting, is kept.
            self._request.x.copy_(sample)
            event = self._exchange.send(self._predict(model_output, sample, level))
            self._request, state = self._until_asked(event)
            if self._request is None:
                self._exchange, self.finished = None, True
            return SchedulerOutput(prev_sample=state) if return_dict else (state,)

        def _start(self, time: float) -> None:
            """Begin at a later one of the timesteps, as image-to-image pipelines do."""
            first = self.tableau.at(self.tableau.evaluated[0])
            assert first is not None
            if abs(time - first.t) <= 0.5:
                return
            starts = [n for n, k in enumerate(self.nodes[:-1]) if abs(k - 1 - time) <= 0.5]
            if not starts or self.finished:
                raise InputError(
                    f"timestep {time:g} is no node to begin at: give timesteps from the list of "
                    "set_timesteps, which is called anew for every run"
                )
            taken = self.nodes[starts[0] :]
            self.tableau = sampler.replace(nodes=taken).tableau(schedule)

        def _until_asked(self, event: Request | Step | None) -> tuple[Request | None, Tensor]:
            """Go on to the next state that the network must see, or to the result."""
            assert event is not None and self._exchange is not None
            while isinstance(event, Step):
                result = event
                event = next(self._exchange, None)
                if event is None:
                    return None, result.outputs[0]
            # A copy: the state itself takes what the pipeline makes of it, this stays what it is.
            return event, event.x.clone()

        def _predict(self, output: Tensor, sample: Tensor, level: Level) -> Prediction:
            var = None
            if output.shape[1] == 2 * sample.shape[1]:
                output, var = output.chunk(2, dim=1)
                var = (var + 1) / 2
            found = Prediction(*target.split(output, sample, level), var)
            return clipping.wrap(lambda x, level: found)(sample, level)

        def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
            """α·x0 + σ·noise at the times given, one for each image."""
            k = timesteps.long().cpu() + 1
            shape = (-1,) + (1,) * (original_samples.ndim - 1)
            alpha, sigma = (
                torch.as_tensor(values[k.numpy()]).to(original_samples).view(shape)
                for values in (schedule.alpha, schedule.sigma)
            )
            return alpha * original_samples + sigma * noise

        def __len__(self) -> int:
            return schedule.T

    return TableauScheduler()


def _calls_a_step(schedule: Schedule, sampler: Sampler) -> int:
    """Network calls of a step but the last; 1 where steps have not as many each."""
    nodes = make_nodes(schedule, "uniform", min(6, schedule.T))
    tableau = sampler.replace(nodes=nodes).tableau(schedule)
    times = [level.t for level in map(tableau.at, tableau.evaluated) if level is not None]
    calls = -(-len(times) // (len(nodes) - 1))
    firsts = times[::calls]
    regular = len(firsts) == len(nodes) - 1 and all(
        abs(k - 1 - t) <= 0.5 for k, t in zip(nodes, firsts, strict=False)
    )
    return calls if regular else 1
