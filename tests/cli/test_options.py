from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from ddim.cli.options import parse, read_toml, to_toml


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every type."""

    name: str = "a"
    count: int = 1
    rate: float = 0.5
    limit: float | None = None
    kind: Literal["one", "two"] = "one"
    numbers: tuple[int, ...] = ()
    maybe: bool | None = None
    dry_run: bool = False
    keep: bool = True

    def __post_init__(self) -> None:
        if self.count < 0:
            from ddim.base.errors import InputError

            raise InputError(f"count must not be negative: {self.count}")


FULL = Options("b c", 3, 1e-4, 2.0, "two", (1, 2), True, True, False)


def given(*argv: str, default: Options | None = None) -> Options:
    return parse(Options, "try", argv, default)


def test_defaults_under_a_file_under_flags(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('count = 2\nname = "file"\n')
    assert given() == Options()
    assert given("--config", str(path)) == Options("file", 2)
    assert given(f"--config={path}", "--count", "7") == Options("file", 7)
    assert given("--count", "7", "--config", str(path)) == Options("file", 7)
    assert given("--config", str(path), default=FULL).rate == FULL.rate


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        FULL,
        dataclasses.replace(FULL, maybe=False, dry_run=False, keep=True),
        Options(name="-dash", count=0, rate=-1.5, numbers=(-3, 4)),
        Options(name='quotes " and \\ and é', numbers=(5,)),
        Options(name="", limit=1e20),
    ],
)
def test_what_is_written_as_toml_is_read_again(tmp_path, options):
    path = tmp_path / "run.toml"
    path.write_text(to_toml(dataclasses.asdict(options), "two\nlines"), encoding="utf-8")
    assert path.read_text(encoding="utf-8").startswith("# two\n# lines\n")
    assert given("--config", str(path)) == options
    if options.limit is not None:
        assert read_toml(path, [f.name for f in dataclasses.fields(Options)])["limit"] == (
            options.limit
        )


@dataclasses.dataclass(frozen=True)
class Placed:
    """Options of which two stand without flags, one of them always given."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")]
    dest: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DEST")] = "there"
    count: int = 1


def test_what_stands_without_a_flag_comes_from_the_file_too(tmp_path, refuses):
    path = tmp_path / "run.toml"
    path.write_text(to_toml(dataclasses.asdict(Placed("a b", "c", 2))))
    config = ("--config", str(path))
    assert parse(Placed, "try", config) == Placed("a b", "c", 2)
    assert parse(Placed, "try", [*config, "--count", "3"]) == Placed("a b", "c", 3)
    assert parse(Placed, "try", ["x", "y", *config]) == Placed("x", "y", 2)
    with refuses("--conut"):
        parse(Placed, "try", [*config, "--conut", "3"])


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--conut", "3"], r"Unrecognized options: --conut, 3: did you mean --count\?"),
        (["--dry-rnu"], r"--dry-rnu: did you mean --dry-run\?"),
        (["stray"], "Unrecognized options: stray$"),
        (["--count", "x"], "--count: .*'x'"),
        (["--count"], "Missing value for argument '--count'"),
        (["--kind", "three"], r"invalid choice 'three'.*\('one', 'two'\)"),
        (["--maybe"], "Missing value for argument '--maybe'"),
        (["--count=-1"], "^count must not be negative: -1$"),
        (["--config"], "--config needs a file"),
    ],
)
@pytest.mark.parametrize("columns", ["200", "50"])
def test_bad_flags_are_one_line(refuses, monkeypatch, capsys, argv, match, columns):
    monkeypatch.setenv("COLUMNS", columns)
    with refuses(match):
        given(*argv)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("count = ", "run.toml is not valid TOML"),
        ("conut = 3", "run.toml: unknown key 'conut': did you mean 'count'"),
        ("zzz = 3", "run.toml: unknown key 'zzz'$"),
        ("[count]\nx = 3", "run.toml: 'count' must be a plain value, not a table"),
        ('count = "three"', "--count: .*'three'"),
        ("count = true", "--count: .*'True'"),
        ("kind = 1", "invalid choice '1'"),
    ],
)
def test_bad_files_are_one_line(tmp_path, refuses, content, match):
    path = tmp_path / "run.toml"
    path.write_text(content)
    with refuses(match):
        given("--config", str(path))


def test_files_that_cannot_be_read(tmp_path, refuses):
    with refuses("there is no file .*nothing.toml"):
        given("--config", str(tmp_path / "nothing.toml"))
    (tmp_path / "picture.toml").write_bytes(b"\x89PNG\xff")
    with refuses("picture.toml is not valid TOML"):
        given("--config", str(tmp_path / "picture.toml"))


def test_help_is_printed_and_ends_with_status_0(capsys):
    with pytest.raises(SystemExit) as stop:
        given("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "Options of every type." in out
    assert "--dry-run" in out


def test_toml_of_paths_and_nothing():
    assert to_toml({"a": None, "b": [True, 1.5], "c": str(Path("x/y"))}) == (
        'b = [true, 1.5]\nc = "x/y"\n'
    )
