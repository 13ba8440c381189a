"""A verb's options: declared as groups, read from flags over a file, shown by ``--help``. No torch.

A verb declares a frozen dataclass, whose fields are groups (:mod:`ddim.cli.groups`) or options of
its own; a field's name is its flag and its key in a file, whichever group it stands in. Tyro draws
the help. The values are read here, so that one sentence about what was typed answers a wrong one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from ddim.base.errors import InputError, quoted
from ddim.base.records import read_toml

__all__ = ["Option", "declared", "flat", "listed", "numbers", "parse", "replaced"]

Options = TypeVar("Options")


def parse(
    kind: type[Options], verb: str, argv: Sequence[str], default: Options | None = None
) -> Options:
    """Read options: built-in defaults, under ``--config FILE``, under the flags.

    Args:
        kind: a frozen dataclass. Its docstring is the verb's help, which the command lines in its
            class attribute ``EXAMPLES`` end.
        verb: the verb, for the help.
        argv: the arguments after the verb.
        default: instead of the dataclass's own defaults.

    Raises:
        InputError: an unknown flag or key, or a value of the wrong kind, in one line.
        SystemExit: with status 0, after printing the help.
    """
    if {"-h", "--help"} & set(argv):
        _help(kind, verb, default)
    options = declared(kind)
    values = _read({**options, "config": Option("config")}, argv)
    config = values.pop("config", None)
    if config is not None:
        values = _from_file(Path(str(config)), options) | values
    return _filled(kind, default, values)


def flat(options: object) -> dict[str, object]:
    """Every option's name and value, without the groups."""
    values: dict[str, object] = {}
    for field in dataclasses.fields(typing.cast(Any, options)):
        value = getattr(options, field.name)
        values |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def replaced(options: Options, **values: object) -> Options:
    """The same options with other values, whichever groups these stand in.

    Raises:
        TypeError: there is no option of that name.
    """
    for name in values.keys() - flat(options).keys():
        raise TypeError(f"{type(options).__name__} has no option {name}")
    return _filled(type(options), options, values)


def _filled(kind: type[Options], default: object, values: Mapping[str, object]) -> Options:
    """The options with these values, over ``default``, over the fields' own defaults."""
    own: dict[str, object] = {}
    for field in dataclasses.fields(typing.cast(Any, kind)):
        before = field.default if default is None else getattr(default, field.name)
        if before is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            before = field.default_factory()
        if dataclasses.is_dataclass(before):
            own[field.name] = _filled(type(before), before, values)
            continue
        own[field.name] = values.get(field.name, before)
        if own[field.name] is dataclasses.MISSING:
            raise InputError(f"{field.name.upper()} is missing")
    return kind(**own)


def listed(values: Sequence[str]) -> list[str]:
    """The parts between spaces and commas, each once; a comma within brackets parts nothing.

    Example:
        >>> listed(["5,10", "20", "5", "f(1,2)"])
        ['5', '10', '20', 'f(1,2)']
        >>> listed(["learned:weights=[[],[0.1]],ddim"])
        ['learned:weights=[[],[0.1]]', 'ddim']
    """
    return list(dict.fromkeys(part for value in values for part in _parts(value)))


def _parts(text: str) -> list[str]:
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def numbers(values: Sequence[str], kind: type, flag: str, words: Sequence[str] = ()) -> list[Any]:
    """The numbers in a list as :func:`listed` takes it; some words may stand among them.

    Raises:
        InputError: a part that is neither a number of that kind nor one of the words.
    """
    option = Option(flag, kind, many=True)
    parts = listed(" ".join(values).split())
    return [part if part in words else option.one(flag, part) for part in parts]


_NUMBERS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers")}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option, as its field declares it.

    Attributes:
        name: the field's.
        kind: the type of one value: str, int, float or bool.
        choices: the values that there are; empty where any of the kind will do.
        many: whether it is a list.
        optional: whether it may be None.
        positional: whether it stands without a flag.
        aliases: other flags than the name's.
    """

    name: str
    kind: type = str
    choices: tuple[object, ...] = ()
    many: bool = False
    optional: bool = False
    positional: bool = False
    aliases: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, hint: Any) -> Option:
        """The option that a field of this type is."""
        hint, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        optional = type(None) in typing.get_args(hint)
        if optional:
            hint = next(part for part in typing.get_args(hint) if part is not type(None))
        many = typing.get_origin(hint) is tuple
        if many:
            hint = typing.get_args(hint)[0]
        return cls(
            name,
            kind=hint if isinstance(hint, type) else str,
            choices=typing.get_args(hint),
            many=many,
            optional=optional,
            positional=tyro.conf.Positional in marks,
            aliases=tuple(a for mark in marks for a in getattr(mark, "aliases", None) or ()),
        )

    @property
    def switch(self) -> bool:
        """Whether its flag takes no value."""
        return self.kind is bool and not self.optional

    def value(self, label: str, given: Sequence[object]) -> object:
        """The value of what was given; ``label`` is what errors call the option."""
        texts = [str(part) for part in given]
        if self.optional and texts == ["None"]:
            return None
        if self.many:
            texts = " ".join(texts).split() if self.kind in _NUMBERS else texts
            return tuple(self.one(label, part) for text in texts for part in _parts(text))
        if len(texts) != 1:
            raise InputError(f"{label} takes one value, not {len(texts)}")
        return self.one(label, texts[0])

    def one(self, label: str, text: str) -> object:
        """One value."""
        words: dict[str, object] = {str(choice): choice for choice in self.choices}
        if self.kind is bool:
            words = {"true": True, "false": False}
            text = text.lower()
        if words:
            if text not in words:
                wanted = "true or false" if self.kind is bool else f"one of {', '.join(words)}"
                raise InputError(f"{label} is {wanted}, not {quoted(text)}{_nearest(text, words)}")
            return words[text]
        try:
            return self.kind(text)
        except ValueError:
            wanted = _NUMBERS[self.kind][self.many]
            raise InputError(f"{label} takes {wanted}, not {quoted(text)}") from None


def declared(kind: type) -> dict[str, Option]:
    """The options of a dataclass and of its groups, by name.

    Raises:
        TypeError: two of them have one name.
    """
    options: dict[str, Option] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[field.name]
        found = {field.name: Option.of(field.name, hint)}
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found = declared(hint)
        for name in found.keys() & options.keys():
            raise TypeError(f"{kind.__name__} has two options {name}")
        options |= found
    return options


def _read(options: Mapping[str, Option], argv: Sequence[str]) -> dict[str, object]:
    """The values on a command line."""
    flags = _flags(options.values())
    places = [option for option in options.values() if option.positional]
    values: dict[str, object] = {}
    rest, reason = list(argv), ""
    while rest:
        typed = rest.pop(0)
        if not _is_flag(typed):
            if not places:
                raise InputError(f"unexpected argument {quoted(typed)}{reason}")
            place, given = places.pop(0), [typed]
            while place.many and rest and not _is_flag(rest[0]):
                given.append(rest.pop(0))
            values[place.name], reason = place.value(place.name.upper(), given), ""
            continue
        label, equals, text = typed.partition("=")
        option, truth = flags.get(label.replace("_", "-"), (None, False))
        if option is None:
            raise InputError(f"unknown option {label}{_nearest(label, flags)}")
        if option.switch:
            if equals:
                raise InputError(f"{label} takes no value")
            values[option.name], reason = truth, f": {label} takes no value"
            continue
        count = next((i for i, part in enumerate(rest) if _is_flag(part)), len(rest))
        count = 0 if equals else count if option.many else min(count, 1)
        given, rest = [text] if equals else rest[:count], rest[count:]
        if not given:
            raise InputError(f"{label} needs a value")
        values[option.name] = option.value(label, given)
        reason = "" if option.many else f": {label} takes one value"
    return values


def _flags(options: Iterable[Option]) -> dict[str, tuple[Option, bool]]:
    """The option that each flag sets, and what a switch sets it to."""
    flags: dict[str, tuple[Option, bool]] = {}
    for option in options:
        name = option.name.replace("_", "-")
        flags |= dict.fromkeys((f"--{name}", *option.aliases), (option, True))
        if option.switch:
            flags[f"--no-{name}"] = (option, False)
    return flags


def _is_flag(text: str) -> bool:
    """Whether it is a flag rather than a value, such as a negative number."""
    return re.match(r"-(?!\.?\d|$)", text) is not None


def _nearest(name: str, names: Iterable[str]) -> str:
    """Which of the names was meant, perhaps; flags are compared without their dashes."""
    bare = {known.lstrip("-"): known for known in names}
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.5)
    return f": did you mean {bare[near[0]]}?" if near else ""


def _from_file(path: Path, options: Mapping[str, Option]) -> dict[str, object]:
    return {
        key: options[key].value(f"{path}: {key}", value if isinstance(value, list) else [value])
        for key, value in read_toml(path, list(options)).items()
    }


def _help(kind: type, verb: str, default: object) -> NoReturn:
    marks = (tyro.conf.AvoidSubcommands, tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    with contextlib.suppress(SystemExit):
        tyro.cli(kind, prog=f"ddim {verb}", args=["--help"], default=default, config=marks)
    print("--config FILE reads options from a TOML file; --debug shows where an error comes from.")
    examples = getattr(kind, "EXAMPLES", ())
    if examples:
        print("\nexamples:", *examples, sep="\n  ")
    raise SystemExit(0)
