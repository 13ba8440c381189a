"""Samplers of this package inside diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ddim.base.errors import InputError, quoted
from ddim.checkpoints.scheduler import parse_scheduler
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.target import Target
from ddim.noise.schedule import Schedule
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
        from ddim.interop.scheduler import TableauScheduler
    except ImportError:
        raise InputError("this is for diffusers, which is not installed") from None
    sampler = Sampler.parse(method, steps, nodes, **options)
    if isinstance(source, Schedule):
        schedule, said, clipped = source, Target.EPS, Clipping()
    elif isinstance(source, TableauScheduler):
        schedule, said, clipped = source.schedule, source.target, source.clipping
    else:
        schedule, said, clipped = _of_theirs(source)
    target = said if target is None else Target.named(target)
    return TableauScheduler.of(schedule, target, clipping or clipped, sampler)


def _of_theirs(source: Any) -> tuple[Schedule, Target, Clipping]:
    """What a scheduler of diffusers says of the noise, the target and the clipping."""
    config, name = getattr(source, "config", None), type(source).__name__
    if not isinstance(config, Mapping):
        raise InputError(f"a scheduler of diffusers or a Schedule is needed, not {quoted(source)}")
    if "Inverse" in name:
        raise InputError(
            f"{name} goes from data to noise: give a scheduler of the same noise that draws, such "
            "as DDIMScheduler, and rising nodes to encode by, such as nodes=[0, 250, 500]"
        )
    if name == "RePaintScheduler":
        raise InputError(
            "RePaintScheduler paints by steps that go back and forth: no sampler stands in for it"
        )
    if config.get("variance_type") == "learned":
        raise InputError(
            "variance_type 'learned' is a variance itself: only one within a range, "
            "'learned_range', is known here"
        )
    return parse_scheduler({**config, "_class_name": name})
