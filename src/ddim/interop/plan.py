"""What an ONNX file is to have in it: its inputs, its graph, and what it says of itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddim import __version__
from ddim.base.errors import InputError
from ddim.denoisers.conventions import Adapted
from ddim.denoisers.network import ask
from ddim.interop import graph
from ddim.interop.recording import NetworkAlone, Sampling, condition_of, noise_inputs
from ddim.model.condition import Condition
from ddim.model.drawing import collect, generate
from ddim.model.model import Model
from ddim.noise.draws import Noise
from ddim.samplers.sampler import Sampler
from ddim.samplers.tableau import Tableau

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Plan"]

_NETWORK = "network"
_OWN = {True: ("x", "t", "prediction"), False: ("noise", "step_noise", "images")}
"""The inputs and the output that have a name of their own: of the network alone, of a sampler."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written, and what each part of it takes.

    Attributes:
        model: the model.
        sampler: what needs no calibration any more; None for the network alone.
        given: guidance, clipping and examples of tensors.
        size: images at once; None where the graph leaves it open.
        tableau: the sampler's rows.

    Raises:
        InputError: a sampler or a condition that are not this model's, or none of a graph's.
    """

    model: Model
    sampler: Sampler | None
    given: Condition
    size: int | None
    tableau: Tableau | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.given.labels is not None:
            raise InputError("labels are an input of the graph: give them to it")
        if self.sampler is not None:
            object.__setattr__(self, "tableau", self.model.tableau(self.sampler))
        elif self.given.guidance != 1 or self.given.clip is not None:
            raise InputError("the network alone is neither guided nor clipped: export a sampler")

    @property
    def calls(self) -> int:
        """Network calls for one image."""
        if self.tableau is None:
            return 1
        return self.tableau.calls * (1 if self.given.guidance == 1 else 2)

    @property
    def output(self) -> str:
        """The name of what comes out."""
        return _OWN[self.tableau is None][2]

    def condition(self, n: int) -> Condition:
        """Of n images, its tensors as the graph takes them."""
        taken = [*_OWN[self.tableau is None], *(["labels"] if self.model.classes else [])]
        return condition_of(self.model, self.given, n, taken)

    def inputs(self, n: int) -> dict[str, Tensor]:
        """The graph's inputs for n images, in order."""
        condition = self.condition(n)
        labels = condition.label_tensor(self.model.device)
        beside = {**({} if labels is None else {"labels": labels}), **condition.tensors}
        if self.tableau is not None:
            # Whatever cannot be drawn is refused here.
            generate(self.model, self.tableau, range(n), condition=condition, batch_size=n)
            return {**noise_inputs(self.model, self.tableau, n), **beside}
        self.model.denoiser(condition)  # refuses a network in training mode
        k = torch.linspace(1, self.model.schedule.T, n).long()
        network = self.model.network
        t = network.time(k - 1, torch.float32) if isinstance(network, Adapted) else k - 1
        return {"x": Noise(0, range(n), self.model.shape)(0), "t": t, **beside}

    @property
    def fractional(self) -> bool:
        """Whether the network is asked between nodes, and so takes all times as numbers."""
        tableau = self.tableau
        levels = () if tableau is None else (tableau.at(i) for i in tableau.evaluated)
        return any(level is not None and level.t != int(level.t) for level in levels)

    def asked(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the network is given, of the graph's inputs."""
        if self.tableau is None:
            return dict(inputs)
        x = inputs["noise"]
        time = torch.zeros(len(x), dtype=torch.float32 if self.fractional else torch.int64)
        beside = {k: v for k, v in inputs.items() if k not in _OWN[False]}
        return {"x": x, "t": time, **beside}

    def network(self, inputs: Mapping[str, Tensor]) -> NetworkAlone:
        """The network as a module that takes :meth:`asked` by place."""
        names = [name for name in self.asked(inputs) if name not in _OWN[True]]
        return NetworkAlone(self.model, names, own=self.tableau is None)

    @torch.no_grad()
    def channels(self, inputs: Mapping[str, Tensor]) -> int:
        """Of what the network returns, twice the images' where it predicts its variance.

        Raises:
            InputError: the network fails.
        """
        asked = list(self.asked(inputs).values())
        return ask(self.network(inputs), *asked).shape[1]

    def record(self, inputs: Mapping[str, Tensor], channels: int, opset: int) -> ModelProto:
        """The graph, from examples of its inputs."""
        axes = dict.fromkeys({**inputs, **self.asked(inputs)}, None if self.size else 0)
        asked = {name: (value, axes[name]) for name, value in self.asked(inputs).items()}
        network = graph.record(self.network(inputs), asked, "prediction", opset)
        if self.tableau is None:
            return network
        sampling = Sampling(
            self.model,
            self.tableau,
            self.condition(len(inputs["noise"])),
            graph.outside(_NETWORK),
            channels,
            fractional=self.fractional,
        )
        if "step_noise" in inputs and not self.size:
            axes["step_noise"] = 1
        examples = {name: (value, axes[name]) for name, value in inputs.items()}
        whole_graph = graph.record(sampling, examples, "images", opset)
        graph.link(whole_graph, network, _NETWORK)
        return whole_graph

    @torch.no_grad()
    def expected(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What comes out without ONNX."""
        if self.tableau is None:
            return self.network(inputs)(*inputs.values())
        n = len(inputs["noise"])
        condition = self.condition(n)
        drawn = generate(self.model, self.tableau, range(n), condition=condition, batch_size=n)
        return collect(self.model, self.tableau, drawn, n, n)[0]

    def sentences(self) -> dict[str, str]:
        """What each input is."""
        n = str(self.size or graph.BATCH)
        inputs = self.inputs(self.size or 2)
        about = {
            "noise": "standard normal",
            "step_noise": "standard normal, one for each row that injects noise",
            "labels": f"classes from 0 to {(self.model.classes or 0) - 1}",
            "x": "states, as the network was trained on them",
            "t": "times, as the network was trained on them",
        }
        if self.model.classes and self.model.null_label is not None:
            about["labels"] += f", {self.model.null_label} for none"
        said = {}
        for name, value in inputs.items():
            shape = [n, *map(str, value.shape[1:])]
            if name == "step_noise":
                shape = [str(len(value)), n, *map(str, value.shape[2:])]
            kind = str(value.dtype).removeprefix("torch.")
            what = about.get(name, "a condition")
            said[name] = f"{kind} ({', '.join(shape)}): {what}"
        return said

    def facts(self) -> dict[str, str]:
        """What the file says of itself."""
        model, given = self.model, self.given
        facts: dict[str, object] = {
            "version": __version__,
            "model": model.name,
            "identity": model.identity,
            "target": model.target.value,
            "schedule": json.dumps(dict(model.schedule.spec), sort_keys=True),
            "inputs": json.dumps(self.sentences(), ensure_ascii=False),
        }
        if self.sampler is not None:
            clip = "" if given.clip is None else str(given.clip).lower()
            facts |= {
                "sampler": self.sampler,
                "nodes": "-".join(map(str, self.sampler.place(model.schedule))),
                "calls": self.calls,
                "guidance": f"{given.guidance:g}",
                "clip": clip or model.clipping.kind,
            }
        else:
            facts |= {"time": model.time, "data_range": json.dumps(model.data_range)}
        return {f"ddim.{name}": str(value) for name, value in facts.items()}
