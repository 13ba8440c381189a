from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import pytest
import tyro

from ddim.base.records import read_toml, to_toml
from ddim.cli.options import listed, numbers, parse


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


def test_what_stands_without_a_flag_has_to_be_there(refuses):
    with refuses("^SOURCE is missing$"):
        parse(Placed, "try", ["--count", "3"])
    with refuses("^unexpected argument 'z'$"):
        parse(Placed, "try", ["x", "y", "z"])
    assert parse(Placed, "try", ["--count", "3", "x"]) == Placed("x", count=3)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--dry-run"], Options(dry_run=True)),
        (["--dry_run"], Options(dry_run=True)),
        (["--no-keep"], Options(keep=False)),
        (["--dry-run", "--no-dry-run"], Options()),
        (["--rate", "-1.5", "--limit", "-.5"], Options(rate=-1.5, limit=-0.5)),
        (["--name=-dash"], Options(name="-dash")),
        (["--name", "-", "--kind=two"], Options(name="-", kind="two")),
        (["--count", "1", "--count", "2"], Options(count=2)),
        (["--maybe", "False"], Options(maybe=False)),
        (["--maybe", "true"], Options(maybe=True)),
    ],
)
def test_flags(argv, expected):
    assert given(*argv) == expected


def test_none_is_a_value_where_there_may_be_none():
    assert given("--maybe", "None", "--limit=None", default=FULL) == dataclasses.replace(
        FULL, maybe=None, limit=None
    )


@pytest.mark.parametrize(
    "flags", [["5,10", "-20", "5"], ["5, 10 -20,5"], ["5", ",10,", "-20", "5"]]
)
def test_lists_are_written_with_spaces_or_commas(flags, tmp_path):
    assert given("--numbers", *flags) == Options(numbers=(5, 10, -20, 5))
    path = tmp_path / "run.toml"
    path.write_text(to_toml({"numbers": flags}))
    assert given("--config", str(path)) == Options(numbers=(5, 10, -20, 5))
    path.write_text(to_toml({"numbers": ",".join(flags)}))
    assert given("--config", str(path)) == Options(numbers=(5, 10, -20, 5))


def test_an_empty_list(tmp_path):
    assert given("--numbers=", default=FULL) == dataclasses.replace(FULL, numbers=())
    path = tmp_path / "run.toml"
    path.write_text("numbers = []")
    assert given("--config", str(path), default=FULL).numbers == ()


def test_lists_of_numbers_and_words(refuses):
    assert listed(["a(1,2),b", "c=[1,2],a(1,2)", " "]) == ["a(1,2)", "b", "c=[1,2]"]
    assert numbers(["5,10", "5 20"], int, "--steps") == [5, 10, 20]
    assert numbers(["0,hat"], float, "--eta", ["hat"]) == [0.0, "hat"]
    with refuses("^--steps takes whole numbers, not '2.5'$"):
        numbers(["2.5"], int, "--steps")


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--conut", "3"], r"^unknown option --conut: did you mean --count\?$"),
        (["--conut=3"], r"^unknown option --conut: did you mean --count\?$"),
        (["--dry-rnu"], r"^unknown option --dry-rnu: did you mean --dry-run\?$"),
        (["-x"], "^unknown option -x$"),
        (["stray"], "^unexpected argument 'stray'$"),
        (["--count", "1", "2"], "^unexpected argument '2': --count takes one value$"),
        (["--dry-run", "yes"], "^unexpected argument 'yes': --dry-run takes no value$"),
        (["--dry-run=yes"], "^--dry-run takes no value$"),
        (["--count", "many"], "^--count takes a whole number, not 'many'$"),
        (["--count", "1.5"], "^--count takes a whole number, not '1.5'$"),
        (["--count", "None"], "^--count takes a whole number, not 'None'$"),
        (["--count="], "^--count takes a whole number, not ''$"),
        (["--limit", "x"], "^--limit takes a number, not 'x'$"),
        (["--numbers", "1,x"], "^--numbers takes whole numbers, not 'x'$"),
        (["--count"], "^--count needs a value$"),
        (["--count", "--dry-run"], "^--count needs a value$"),
        (["--numbers"], "^--numbers needs a value$"),
        (["--maybe"], "^--maybe needs a value$"),
        (["--kind", "tow"], r"^--kind is one of one, two, not 'tow': did you mean two\?$"),
        (["--kind", "three"], "^--kind is one of one, two, not 'three'"),
        (["--maybe", "x"], "^--maybe is true or false, not 'x'$"),
        (["--count=-1"], "^count must not be negative: -1$"),
        (["--config"], "^--config needs a value$"),
    ],
)
def test_bad_flags_are_one_line(refuses, capsys, argv, match):
    with refuses(match):
        given(*argv)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("count = ", "run.toml is not valid TOML"),
        ("conut = 3", "run.toml: unknown key 'conut': did you mean 'count'"),
        ("zzz = 3", "run.toml: unknown key 'zzz'$"),
        ("config = 'a'", "run.toml: unknown key 'config'"),
        ("[count]\nx = 3", "run.toml: 'count' must be a plain value, not a table"),
        ('count = "three"', "run.toml: count takes a whole number, not 'three'$"),
        ("count = true", "run.toml: count takes a whole number, not 'True'$"),
        ("count = [1, 2]", "run.toml: count takes one value, not 2$"),
        ("kind = 1", "run.toml: kind is one of one, two, not '1'$"),
        ("dry_run = 1", "run.toml: dry_run is true or false, not '1'$"),
    ],
)
def test_bad_files_are_one_line(tmp_path, refuses, content, match):
    path = tmp_path / "run.toml"
    path.write_text(content)
    with refuses(match):
        given("--config", str(path))


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--count", "many", "--help"]])
def test_help_is_printed_and_ends_with_status_0(capsys, argv):
    with pytest.raises(SystemExit) as stop:
        given(*argv)
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert "Options of every type." in out
    assert "--dry-run" in out
    assert "--no-dry-run" not in out
    assert "--no-keep" in out
    assert "--config FILE" in out
    assert "examples" not in out
    assert not err
