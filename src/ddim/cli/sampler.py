"""The options that choose a sampler, for every verb that runs one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from ddim.base.errors import InputError

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.noise.nodes import Nodes
    from ddim.noise.schedule import Schedule
    from ddim.samplers.tableau import Tableau

__all__ = ["RunOptions", "SamplerOptions", "make_sampler", "open_model"]


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run, for every verb that calls a network."""

    batch_size: int | None = None
    """Images in one network call; it decides the last bits. 1 is the mode of lowest latency."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    threads: int | None = None
    """CPU threads."""
    force: bool = False
    """Write over what is there."""
    json: bool = False
    """Print a JSON document."""
    quiet: bool = False
    """No progress bars."""

    def resolved(self, **values: object) -> Any:
        """The same with values filled in, and without what decides nothing about the output."""
        return dataclasses.replace(self, force=False, json=False, quiet=False, **values)  # pyright: ignore[reportArgumentType]


def open_model(model: str, options: RunOptions, dtype: str = "float32") -> Model:
    """Load a model onto the device and in the precision that are asked for."""
    import torch

    from ddim.base.device import pick_device, set_threads
    from ddim.model.opening import load

    set_threads(options.threads)
    if options.batch_size is not None and options.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {options.batch_size}")
    return load(model, device=pick_device(options.device)).to(dtype=getattr(torch, dtype))


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """Method, steps and nodes."""

    method: str = "ddim"
    """Sampler: ddim, ddpm, or a later one, such as dpmpp, unipc, deis, plms, heun."""
    steps: int | None = None
    """Steps, from 1 to T; 50 (inspect: 10) if neither this nor a list of nodes is given."""
    nodes: str = "uniform"
    """Where the steps stop: uniform, trailing, quadratic, log-snr, a list like 500,250,0, or
    calibrated: what `ddim calibrate` found for the model and this number of steps."""
    eta: float | None = None
    """DDIM's η: 0 is deterministic, 1 is as random as DDPM."""
    order: int | None = None
    """Order, for methods that come in several."""
    option: tuple[str, ...] = ()
    """More of the method's own options, as KEY=VALUE: variance=large for ddpm."""


def make_sampler(
    options: SamplerOptions,
    source: Model | Schedule,
    default_steps: int,
    strength: float | None = None,
) -> tuple[Nodes, Tableau]:
    """The nodes and the tableau that the options ask for, of a model or of a schedule alone.

    With a strength below 1 the tableau takes only the last part of the nodes.

    Raises:
        InputError: unknown names, numbers out of range, an option that the method does not have.
    """
    from ddim.model import sampler
    from ddim.noise.nodes import make_nodes
    from ddim.noise.schedule import Schedule
    from ddim.samplers.sampler import make_tableau

    schedule = source if isinstance(source, Schedule) else source.schedule
    steps = options.steps
    if steps is None and not options.nodes[:1].isdigit():
        steps = min(default_steps, schedule.T)
    chosen: dict[str, object] = {"eta": options.eta, "order": options.order}
    chosen = {key: value for key, value in chosen.items() if value is not None}
    chosen |= sampler.method_options(options.method, options.option)
    count = _steps_of(options.nodes, steps)
    if options.order is not None and count is not None and options.order > count:
        raise InputError(
            f"order {options.order} takes at least {options.order} steps to be reached, not "
            f"{count}: give more steps or a lower order"
        )
    if isinstance(source, Schedule):
        nodes = make_nodes(schedule, options.nodes, steps)
        return nodes, make_tableau(schedule, nodes, options.method, **chosen)
    return sampler.make_sampler(
        source, options.nodes, steps, options.method, strength=strength, **chosen
    )


def _steps_of(nodes: str, steps: int | None) -> int | None:
    """S, of a family or of a list."""
    return nodes.count(",") if nodes[:1].isdigit() else steps
