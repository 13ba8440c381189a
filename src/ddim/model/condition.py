"""What differs between images beside their noise: classes, tensors, guidance, clipping."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ddim.base.display import shown
from ddim.base.errors import InputError, quoted

__all__ = ["Condition", "Conditioned", "single"]


class Conditioned(Protocol):
    """What a condition is checked against: the part of a :class:`~ddim.Model` that it asks for."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> int | None: ...  # noqa: D102
    @property
    def null_label(self) -> int | None: ...  # noqa: D102
    @property
    def null(self) -> Mapping[str, Tensor]: ...  # noqa: D102
    @property
    def labels_as(self) -> str | None: ...  # noqa: D102
    @property
    def arguments(self) -> Mapping[str, object]: ...  # noqa: D102
    def takes(self, name: str) -> bool: ...  # noqa: D102


@shown
@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """What images are drawn of.

    Attributes:
        labels: one class for all images, or several, which are repeated in turn; None for a model
            without classes, and for all classes in turn where images are drawn.
        tensors: given to the network by name, a row for each image.
        guidance: classifier-free guidance scale; 1 is none. Guidance compares with 'no class' and
            with the null values of the tensors; those without one stay what they are.
        rescale: how much of the contrast that guidance adds is taken back, from 0 to 1; see
            :class:`~ddim.denoisers.guidance.Guided`.
        clip: clip the predicted x0 to [-1, 1], or do not; None for the model's default.
        null: null values of tensors by name, one row each, over those of the model.

    Raises:
        InputError: labels that are no whole numbers, values that are no tensors, a scale that is
            not finite, or a rescale without guidance.

    Example:
        >>> Condition(labels=[3, 7]).rows(5).labels
        (3, 7, 3, 7, 3)
    """

    labels: tuple[int, ...] | None = None
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    guidance: float = 1.0
    clip: bool | None = None
    null: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    rescale: float = 0.0

    def __init__(
        self,
        labels: int | Sequence[int] | Tensor | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        guidance: float = 1.0,
        clip: bool | None = None,
        null: Mapping[str, Tensor] | None = None,
        rescale: float = 0.0,
    ) -> None:
        tensors, null = _tensors(tensors), _tensors(null)
        for name, value in {**tensors, **null}.items():
            if not isinstance(value, Tensor):
                raise InputError(
                    f"the condition {name} is a tensor with a row for each image, not a "
                    f"{type(value).__name__}"
                )
        guidance, rescale = _number("guidance", guidance), _number("rescale", rescale)
        if not 0 <= rescale <= 1:
            raise InputError(f"rescale is from 0 to 1, not {rescale:g}")
        if rescale and guidance == 1:
            raise InputError("rescale takes back what guidance adds: give a guidance scale too")
        if clip not in (None, True, False):
            raise InputError(f"clip is true, false or None, not {clip!r:.200}")
        object.__setattr__(self, "labels", _whole(labels))
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "guidance", guidance)
        object.__setattr__(self, "rescale", rescale)
        object.__setattr__(self, "clip", clip)
        object.__setattr__(self, "null", null)

    @classmethod
    def of(
        cls,
        condition: Condition | Mapping[str, Tensor] | None,
        labels: int | Sequence[int] | Tensor | None = None,
        guidance: float | None = None,
        clip: bool | None = None,
    ) -> Condition:
        """A condition from one, or from its tensors alone, with other parts where they are given.

        Raises:
            InputError: neither a condition nor tensors by name.
        """
        if condition is None:
            condition = cls()
        elif isinstance(condition, Mapping):
            condition = cls(tensors=condition)
        elif not isinstance(condition, Condition):
            raise InputError(
                "a condition is a ddim.Condition, or tensors by name, not a "
                f"{type(condition).__name__}"
            )
        parts = {"labels": labels, "guidance": guidance, "clip": clip}
        return condition.replace(**{k: v for k, v in parts.items() if v is not None})

    def replace(self, **changes: object) -> Condition:
        """The same with other parts."""
        now = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Condition(**{**now, **changes})

    def rows(self, n: int) -> Condition:
        """The condition of n images, with a label for each of them.

        Raises:
            InputError: more labels than images, or a tensor of another number of rows.
        """
        labels = self.labels
        if labels is not None:
            if len(labels) > n or (n and not labels):
                raise InputError(f"{len(labels)} labels were given for {n} images")
            labels = tuple(labels[i % len(labels)] for i in range(n))
        for name, value in self.tensors.items():
            if value.ndim == 0 or len(value) != n:
                raise InputError(
                    f"the condition {name} has {len(value) if value.ndim else 0} rows, not one for "
                    f"each of {n} images"
                )
        return self.replace(labels=labels)

    @classmethod
    def join(cls, parts: Sequence[Condition]) -> Condition:
        """The conditions of sets of images, each with a row for each of its own, as that of all.

        Args:
            parts: at least one, alike but for their rows.

        Raises:
            InputError: they differ in guidance, clipping, or in what they have.
        """
        first = parts[0]
        for other in parts:
            alike = (other.guidance, other.rescale, other.clip, other.labels is None)
            if alike != (first.guidance, first.rescale, first.clip, first.labels is None) or (
                other.tensors.keys() != first.tensors.keys()
            ):
                raise InputError("conditions are joined that differ in nothing but their rows")
        labels = None
        if first.labels is not None:
            labels = [label for part in parts for label in part.labels or ()]
        tensors = {name: torch.cat([p.tensors[name] for p in parts]) for name in first.tensors}
        return first.replace(labels=labels, tensors=tensors)

    def __getitem__(self, images: Sequence[int] | slice) -> Condition:
        """The condition of some of the images."""
        labels = self.labels
        if labels is not None:
            chosen = labels[images] if isinstance(images, slice) else [labels[i] for i in images]
            labels = tuple(chosen)
        return self.replace(
            labels=labels, tensors={name: value[images] for name, value in self.tensors.items()}
        )

    def check(
        self, model: Conditioned, n: int | None = None, *, every_class: bool = False
    ) -> Condition:
        """This condition for a model, refused where it is not one that the model can take.

        Args:
            model: the model.
            n: how many images; None where the condition has a row for each already.
            every_class: whether a class-conditional model without labels is given all its classes
                in turn, as for images that are drawn.

        Raises:
            InputError: labels for a model without classes or the reverse, one out of range, a
                tensor that the network does not take, guidance without null values.
        """
        given = self
        if given.labels is None and model.classes is not None and every_class:
            given = given.replace(labels=range(model.classes)[: n or None])
        if n is not None:
            given = given.rows(n)
        if (given.labels is None) != (model.classes is None):
            raise InputError(
                f"{model.name} is class-conditional: give labels"
                if given.labels is None
                else f"{model.name} has no classes, so labels mean nothing to it"
            )
        for label in dict.fromkeys(given.labels or ()):
            if label not in range(model.classes or 0) and label != model.null_label:
                none = "" if model.null_label is None else f", or {model.null_label} for 'none'"
                raise InputError(
                    f"labels are from 0 to {(model.classes or 0) - 1}{none}, not {label}"
                )
        for name in given.null.keys() - given.tensors.keys():
            raise InputError(f"there is a null value for {name}, but no condition of that name")
        for name in given.tensors:
            if not model.takes(name):
                raise InputError(f"the network of {model.name} takes no argument {quoted(name)}")
            if name == model.labels_as or name in model.arguments:
                raise InputError(f"{model.name} gives its network {name} itself: take another name")
        if given.guidance != 1.0:
            given.without(model)
        return given

    def without(self, model: Conditioned) -> Condition:
        """The condition that guidance compares with.

        Raises:
            InputError: the model has no label for 'no class', or nothing has a null value.
        """
        null = {**model.null, **self.null}
        tensors = {}
        for name, value in self.tensors.items():
            tensors[name] = value
            if name in null:
                row = null[name] if null[name].ndim == value.ndim else null[name][None]
                if row.shape != (1, *value.shape[1:]):
                    raise InputError(
                        f"the null value of {name} has shape {tuple(row.shape[1:])}, not "
                        f"{tuple(value.shape[1:])} as its rows"
                    )
                tensors[name] = row.to(value).expand_as(value)
        labels = self.labels
        if labels is not None:
            if model.null_label is None:
                raise InputError(
                    f"{model.name} was not trained for guidance, or does not say so: it has no "
                    "label for 'no class' (null_label)"
                )
            labels = (model.null_label,) * len(labels)
        elif not null.keys() & self.tensors.keys():
            raise InputError(
                f"guidance compares with a condition left out, and {model.name} was given none "
                "that can be: give classes, or tensors with null values"
            )
        return self.replace(labels=labels, tensors=tensors)

    def label_tensor(self, device: torch.device) -> Tensor | None:
        """The labels, int64 of shape (N,), on a device."""
        return None if self.labels is None else torch.tensor(self.labels, device=device)


def single(value: object) -> object:
    """The number in an array or a tensor of one; anything else as it is."""
    if not isinstance(value, Tensor | np.ndarray | np.generic):
        return value
    numbers = value.reshape(-1).tolist()
    return numbers[0] if len(numbers) == 1 else value


def _number(name: str, value: object) -> float:
    value = single(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{name} is a number, not {quoted(value)}")
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, not {value}")
    return float(value)


def _tensors(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The same values, NumPy arrays as tensors."""
    arrays = {k: v for k, v in (given or {}).items() if isinstance(v, np.ndarray)}
    return {**(given or {}), **{k: torch.from_numpy(v) for k, v in arrays.items()}}


def _whole(labels: object) -> tuple[int, ...] | None:
    """Labels as plain numbers."""
    if labels is None:
        return None
    try:
        if isinstance(labels, Tensor | np.ndarray):
            labels = labels.tolist()
        if isinstance(labels, Sequence) and not isinstance(labels, str):
            return tuple(operator.index(label) for label in labels)
        return (operator.index(labels),)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise InputError(f"labels are whole numbers, not {labels!r:.200}") from None
