"""A model: a network, and everything that it takes to draw from it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddim.backends.choice import Engine, checksum, choose, is_torchs
from ddim.backends.exchange import over_ranks
from ddim.backends.names import BACKENDS
from ddim.backends.purity import Memory, check_evaluation, has_hooks
from ddim.backends.workers import side_by_side, worker_count
from ddim.base.display import facts_table, line
from ddim.base.errors import InputError, unknown
from ddim.base.ranks import here
from ddim.checkpoints.calibration import CalibrationFile, find_calibration
from ddim.checkpoints.diffusers import write_folder
from ddim.checkpoints.record import Facts
from ddim.denoisers.clipping import Clipping
from ddim.denoisers.conventions import Adapted, Conventions
from ddim.denoisers.guidance import Guided
from ddim.denoisers.network import NetworkDenoiser
from ddim.denoisers.prediction import Denoiser
from ddim.denoisers.target import Target
from ddim.model.condition import Condition
from ddim.model.fields import check_fields
from ddim.model.identity import bare, digest_of, versions_of
from ddim.nets.unet import UNet
from ddim.noise.schedule import Schedule
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

__all__ = ["Model"]

T = TypeVar("T")
Inputs = list[tuple[Tensor | None, dict[str, Tensor]]]
"""Labels, and tensors by name: what a network is given beside states and times."""
log = logging.getLogger("ddim")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A network and what is needed to sample it, whoever made it.

    The network is put into evaluation mode. It may return a tensor, a tuple that begins with one,
    or an object that has one as ``.sample``.

    =========================  ==================================================================
    ``time``                   what the network is given at node k of T
    =========================  ==================================================================
    ``index``                  k - 1, so 0 to T - 1
    ``one-based``              k
    ``fraction``               k/T
    ``fraction-from-zero``     (k - 1)/T: the index divided by T
    ``thousandths``            1000·k/T
    ``thousandths-from-zero``  1000·(k - 1)/T: improved-diffusion's rescaled times
    ``lambda``, ``log-snr``    log(α/σ), and twice that
    ``sigma``, ``rho``         σ, and σ/α
    =========================  ==================================================================

    Samplers with inner stages ask between the nodes: times follow k there, fractions included.

    Attributes:
        net: called as ``net(x, time)`` or ``net(x, time, labels)``, time of shape (N,); the tensors
            of a :class:`~ddim.Condition` come as keyword arguments.
        schedule: the noise schedule that it was trained with, on data of its own range; once the
            model is made, what that is for data in [-1, 1].
        target: what it predicts: eps, x0, v or flow, or a :class:`~ddim.Target`.
        shape: of one image, (C, H, W); any shape will do for a network of any other data.
        time: see the table.
        offset: how many levels lower than usual its times lie: 1 where its first time means clean
            data, -1 where its first time means the level of node 2. A level without a time is
            left out, so that the model has fewer steps than the schedule.
        data_range: what black and white were when it was trained, such as (0, 1) or (-0.5, 0.5).
            Images in and out are in [-1, 1] all the same.
        arguments: given to the network by name at every call, the same for every image: numbers,
            text and tensors whose first dimension is 1, also within lists and dictionaries.
            Tensors move with it. What differs between images is a :class:`~ddim.Condition`.
        keep_variance: of a network that returns twice the channels: whether the second half
            interpolates a learned variance (Nichol and Dhariwal 2021, equation 15). False drops it.
        time_dtype: of the times; None for int64 where they are whole and floating point elsewhere.
            A whole type refuses times between nodes.
        labels_as: the argument by which a class-conditional network takes its labels; None if
            they are its third.
        classes: number of classes of a class-conditional network.
        null_label: its label for 'no class', which guidance needs.
        null: the same for tensors of a condition, by name, one row each.
        clipping: what is done to the predicted x0 by default; nothing if None.
        name: what outputs call it.
        facts: what is known of the training; a mapping is taken for one.
        backend: what runs the network: ``torch``, ``ncnn``, ``openvino``, on CUDA ``cuda-graph`` or
            ``compile``; ``auto`` for the fastest that is exact, see :attr:`runs_on`.
        workers: how many batches run side by side on a CPU at most; 1 for a network that is not
            safe to call from two threads. None for as many as torch has threads.
        calibration: the file where its calibration is or will be kept; None for a model that was
            not opened from a file. That of a shipped model stands behind what the user found.
        network: what denoisers call: the network under the conventions t = k - 1 and [-1, 1].

    Raises:
        InputError: not a module, unknown names, or options that contradict each other.

    Example:
        >>> import ddim
        >>> net = ddim.load("mnist").net  # predicts eps at k - 1
        >>> model = Model(net, ddim.Schedule.linear(500, scaled=True), "eps", (1, 28, 28))
        >>> ddim.sample(model, n=1, steps=2).shape
        torch.Size([1, 1, 28, 28])
    """

    net: nn.Module
    schedule: Schedule
    target: Target
    shape: tuple[int, ...]
    _: dataclasses.KW_ONLY
    time: str = "index"
    offset: int = 0
    data_range: tuple[float, float] = (-1.0, 1.0)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keep_variance: bool = True
    time_dtype: torch.dtype | None = None
    labels_as: str | None = None
    classes: int | None = None
    null_label: int | None = None
    null: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    clipping: Clipping = dataclasses.field(default_factory=Clipping)
    name: str = "model"
    facts: Facts = dataclasses.field(default_factory=Facts)
    calibration: Path | None = None
    backend: str = "auto"
    workers: int | None = None
    network: nn.Module = dataclasses.field(init=False)
    _given: Schedule = dataclasses.field(init=False)
    _known: dict[str, Any] = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        check_fields(self)
        conventions = Conventions(
            self.time,
            self.offset,
            (self.data_range[0], self.data_range[1]),
            self.keep_variance,
            self.time_dtype,
            self.labels_as,
        )
        target, arguments = Target.named(self.target), dict(self.arguments or {})
        network = self.net.eval()
        # A network without parameters has no place of its own: the one around it has.
        placeless = next(self.net.parameters(), None) is None
        if conventions != Conventions() or arguments or placeless:
            network = Adapted(self.net, self.schedule, target, conventions, arguments).eval()
        settled = {
            "_given": self.schedule,
            "schedule": conventions.outside(self.schedule),
            "target": target,
            "shape": tuple(self.shape),
            "arguments": arguments,
            "null": dict(self.null or {}),
            "clipping": self.clipping or Clipping(),
            "calibration": None if self.calibration is None else Path(self.calibration),
            "facts": self.facts if isinstance(self.facts, Facts) else Facts.of(self.facts or {}),
            "network": network,
            "_known": {},
        }
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        kind = f", {self.classes} classes" if self.classes else ""
        return line(
            f"Model({self.name!r}, {type(bare(self.net)).__name__} of shape {self.shape}, "
            f"{self.target.value}, {self.schedule}{kind})"
        )

    def _repr_html_(self) -> str:
        count = sum(p.numel() for p in self.net.parameters())
        facts = {
            "name": self.name,
            "network": f"{type(bare(self.net)).__name__}, {count:,} parameters",
            "shape": self.shape,
            "predicts": self.target.value,
            "schedule": self.schedule,
            "classes": self.classes,
            "clipping": None if self.clipping == Clipping() else self.clipping,
            "device": f"{self.device}, {str(self.dtype).removeprefix('torch.')}",
            "back end": self.backend,
            "data": self.facts.data.get("name"),
            "assumed": "; ".join(self.facts.assumed) or None,
        }
        return facts_table("Model", {k: v for k, v in facts.items() if v is not None})

    # -- what it is -----------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The coarsest of the network's floating-point types; float32 for one without any."""
        found = {p.dtype for p in self.network.parameters() if p.is_floating_point()}
        return max(found, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)

    @property
    def identity(self) -> str:
        """SHA-256 of what decides the images, in hexadecimal: weights, schedule, conventions.

        The same on every machine and device, in every precision that holds the weights whole, of a
        network before and after ``torch.compile``, and whichever way the model was made. Latents
        and other files that are only good for one model carry it. It is computed again when weights
        were changed, as by an optimizer; what is written through ``.data`` goes unseen.
        """
        versions = versions_of(self.network)
        if self._known.get("versions") != versions:
            self._known.update(
                versions=versions,
                identity=digest_of(self.net, self.network, self.schedule, self.target),
            )
        return self._known["identity"]

    def __getstate__(self) -> dict[str, Any]:
        # A copy's weights have other addresses. Rounded ones do not tell what they were made of.
        rounded = torch.finfo(self.dtype).bits == 16
        return {**self.__dict__, "_known": {"identity": self.identity} if rounded else {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._known:
            self._known["versions"] = versions_of(self.network)

    # -- other forms of it ----------------------------------------------------------------------

    def replace(self, **changes: Any) -> Model:
        """The same model with other fields, checked again."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return Model(**{**fields, "schedule": self._given, **changes})

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Model:
        """The same model elsewhere, or in another precision; the network itself is moved.

        While it is in 16 bits a model keeps its identity, and with it the calibration that was
        made for it. Brought back from there its weights are rounded ones, and it is another model.
        """
        low = torch.finfo(dtype or self.dtype).bits == 16
        identity = self.identity if low else None
        self.network.to(device=device, dtype=dtype)
        moved = copy.copy(self)
        known = {"versions": versions_of(moved.network), "identity": identity} if low else {}
        object.__setattr__(moved, "_known", known)
        if moved.dtype is torch.bfloat16 and moved.device.type == "cpu":
            # There torch's bfloat16 group norm is 20 times slower in channels_last, which costs
            # more than the convolutions gain by it.
            moved.net.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        return moved

    def save(self, folder: Path | str, scheduler: Mapping[str, Any] | None = None) -> None:
        """Write a model folder that this package and diffusers open.

        Args:
            folder: where to.
            scheduler: the ``scheduler_config.json``, as :func:`ddim.export_scheduler` makes it;
                that of diffusers' DDIM if None.

        Raises:
            InputError: the network or its schedule is not one that diffusers has; nothing is
                written then.
        """
        if not isinstance(self.network, UNet):
            own = isinstance(bare(self.net), UNet)
            blocked = self.network if own else bare(self.net)
            why = ", ".join(getattr(blocked, "beyond_diffusers", ["another architecture"]))
            raise InputError(
                f"diffusers' UNet2DModel cannot express a {type(bare(self.net)).__name__} ({why}), "
                "so it has no model folder: use it as it is"
            )
        facts = {"name": self.name, "classes": self.classes, "null_label": self.null_label}
        write_folder(
            Path(folder),
            self.network.config,
            self.network.state_dict(),
            self.schedule,
            self.target,
            self.clipping,
            {**self.facts.to_json(), **facts},
            scheduler,
        )

    def with_backend(self, name: str) -> Model:
        """The same model and network, run by another back end; see :attr:`backend`.

        Raises:
            InputError: an unknown one, or one that cannot run this network here.
            RunError: its answer is not torch's.
        """
        if name not in BACKENDS:
            raise unknown("backend", name, BACKENDS)
        other = copy.copy(self)
        known = {k: v for k, v in self._known.items() if not k.startswith("engine")}
        object.__setattr__(other, "_known", known)
        object.__setattr__(other, "backend", name)
        if name != "auto":
            other.engine()
        return other

    # -- drawing from it ------------------------------------------------------------------------

    @property
    def runs_on(self) -> str:
        """The name of what runs the network: that of :attr:`backend`, or what ``auto`` stands for.

        Raises:
            InputError: a back end that cannot run this network here.
        """
        engine = self.engine()
        return "torch" if engine is None else engine.name

    def engine(self) -> Engine | None:
        """What runs the network in place of plain torch; made again where weights have changed.

        Under autocast, which only torch follows, and in float64 there is none. Those on CUDA read
        the network's own weights, and look themselves whether others have taken their place.
        """
        if is_torchs(self.backend, self.network, self.device):
            return None
        if torch.is_autocast_enabled(self.device.type):
            return None
        weights = 0 if self.device.type == "cuda" else checksum(self.network)
        mark = (weights, self.device, torch.get_num_threads())
        if self._known.get("engine_of") != mark:
            made = choose(self.backend, self.network, self.shape, self.device)
            self._known.update(engine=made, engine_of=mark)
        return self._known["engine"]

    def predictor(self, *, grad: bool = False) -> NetworkDenoiser:
        """The network as a denoiser without a condition, which batches share.

        Args:
            grad: let gradients through, which torch alone can.

        Raises:
            InputError: a network in training mode.
        """
        check_evaluation(self.net)
        engine = None if grad else self.engine()
        return NetworkDenoiser(self.network, self.target, grad=grad, engine=engine)

    def each(self, job: Callable[[int], T], count: int) -> Generator[T, None, None]:
        """The results of ``job(0)`` to ``job(count - 1)`` in order; see :meth:`side_by_side`."""
        return self.side_by_side(lambda number: [job(number)], count, ends=lambda _: True)

    def side_by_side(
        self, job: Callable[[int], Iterable[T]], count: int, *, ends: Callable[[T], bool]
    ) -> Generator[T, None, None]:
        """Jobs that call the network, on :attr:`workers`: see :mod:`ddim.backends.workers`.

        A network that remembers something of its calls gets one worker. Of several processes
        (:mod:`ddim.base.ranks`) each does a part of the jobs, and all of them are given the ends.

        Raises:
            InputError: several processes, and a network that remembers something of its calls.
        """
        ranks, workers = here(), worker_count(self.device, self.workers)
        run = side_by_side
        if ranks.count > 1:
            run = functools.partial(over_ranks, ranks=ranks, device=self.device)
        own = type(self.network) is UNet and not has_hooks(self.network)
        engine = None if torch.is_autocast_enabled(self.device.type) else self._known.get("engine")
        if engine is not None and engine.name == "openvino":
            # Nothing else may run while torch exports a network, at its first call.
            return run(job, count, workers, ends=ends, alone=lambda ended: False)
        if own or engine is not None or self._known.get("pure"):
            return run(job, count, workers, ends=ends)
        if ranks.count == 1 and min(workers, count) < 2:
            return run(job, count, workers, ends=ends)
        memory = Memory(self.network)

        def changed() -> str | None:
            found = memory.changed()
            self._known["pure"] = found is None
            return found

        def checked(number: int) -> Iterable[T]:
            yield from job(number)
            if not self._known.get("pure") and (found := changed()) is not None:
                raise InputError(
                    f"the network of {self.name} may remember its calls ({found}), so that "
                    "several processes would not draw what one does: run it in one"
                )

        def alone(ended: bool) -> bool | None:
            if ranks.count > 1:  # until one job is checked
                return False if self._known.get("pure") else None
            found = changed() if ended else None
            if found is not None:
                log.warning(
                    "the network of %s may remember its calls (%s), so its batches run one after "
                    "another: Model(…, workers=1) says so beforehand",
                    self.name,
                    found,
                )
            return found is not None if ended else None

        return run(job if ranks.count == 1 else checked, count, workers, ends=ends, alone=alone)

    def denoiser(
        self,
        condition: Condition | None = None,
        *,
        network: NetworkDenoiser | None = None,
        grad: bool = False,
    ) -> Denoiser:
        """The denoiser for a batch.

        Args:
            condition: of the batch, one row for each of its images, as :meth:`Condition.check`
                returns it.
            network: one that an earlier batch used, to share what it computed for the times.
            grad: let gradients through, as for :class:`~ddim.denoisers.network.NetworkDenoiser`.

        Raises:
            InputError: a network in training mode, where dropout, batch normalisation or whatever
                else reads the mode works in another way; or a condition that is not this model's.
        """
        given = Condition.of(condition).check(self)
        network = network or self.predictor(grad=grad)
        return self.denoiser_of(self.inputs(given), given, network)

    def inputs(self, condition: Condition) -> Inputs:
        """Labels and tensors of a condition, on the device and in the precision of the network.

        Args:
            condition: of a batch, as :meth:`Condition.check` returns it; with guidance the
                condition that it compares with comes second.
        """
        parts = [condition]
        if condition.guidance != 1.0:
            parts.append(condition.without(self))
        return [(part.label_tensor(self.device), self._moved(part.tensors)) for part in parts]

    def denoiser_of(
        self, inputs: Inputs, condition: Condition, network: NetworkDenoiser
    ) -> Denoiser:
        """The denoiser of inputs that are where the network is; nothing is checked or copied.

        Args:
            inputs: as :meth:`inputs` makes them.
            condition: whose guidance and clipping are taken, and nothing else.
            network: as for :meth:`denoiser`.
        """
        asked, *free = [network.given(*part) for part in inputs]
        return self.wrap(asked, free[0] if free else None, condition)

    def wrap(
        self, denoiser: NetworkDenoiser, null: NetworkDenoiser | None, condition: Condition
    ) -> Denoiser:
        """A network's denoiser with the guidance and the clipping of a condition around it.

        Guidance is one network call of twice the images on CUDA, and elsewhere two calls.

        Args:
            denoiser: of what the images are drawn of.
            null: of nothing, which guidance compares with; None where there is none.
            condition: whose scale and clipping are taken.
        """
        guided: Denoiser = denoiser
        if null is not None:
            scale, rescale = condition.guidance, condition.rescale
            both = self.device.type == "cuda"
            guided = Guided(denoiser, null, scale, rescale, self.target, together=both)
        clipping = self.clipping
        if condition.clip is not None:
            clipping = Clipping("clip") if condition.clip else Clipping()
        return clipping.wrap(guided)

    def _moved(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors where the network is, in its precision where they are no whole numbers."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for name, value in tensors.items()
        }

    def takes(self, name: str) -> bool:
        """Whether the network has an argument of that name that is not its state, time or label."""
        if isinstance(bare(self.net), UNet):
            return False
        parameters = list(inspect.signature(bare(self.net).forward).parameters.values())
        by_place = 2 if self.classes is None or self.labels_as is not None else 3
        names = [p.name for p in parameters[by_place:] if p.kind is not p.VAR_POSITIONAL]
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
        taken = [p.name for p in parameters[:by_place]]
        return name in names or (anything and name not in taken)

    def tableau(self, sampler: Sampler | str, strength: float | None = None) -> Tableau:
        """The rows of a sampler on this model's schedule.

        Args:
            sampler: also one that needs a model, whose calibration is then asked.
            strength: only the part that starts at the node nearest to strength · T.

        Raises:
            InputError: numbers that do not fit the schedule; a calibration that is not there.
        """
        wanted = Sampler.parse(sampler).starting(strength, self.schedule)
        tableau = self.resolve(wanted).tableau(self.schedule)
        if wanted.brings_nodes:
            return dataclasses.replace(tableau, method=f"calibrated {tableau.method}")
        return tableau

    def resolve(self, sampler: Sampler) -> Sampler:
        """The sampler with what it needs of a model filled in from the calibration.

        Raises:
            InputError: no calibration, a stale one, or none for so many steps.
        """
        needs = sampler.entry.needs
        if needs is None or needs in dict(sampler.settings):
            return sampler
        known = self.calibrated()
        if needs == "gamma":
            nodes = sampler.place(self.schedule)
            return sampler.replace(nodes=nodes, gamma=known.gamma(self.schedule, nodes).tolist())
        return known.sampler(sampler.steps, self.name, sampler.method)

    def calibrated(self) -> CalibrationFile:
        """What calibration found for this model.

        Raises:
            InputError: nothing yet, or what was found for other weights, another schedule or
                target.
        """
        found = find_calibration(self.calibration, self.identity)
        if found is None:
            raise InputError(
                f"{self.name} has no calibration: `ddim calibrate MODEL --calls N` makes one"
            )
        return found
