from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import Annotated, ClassVar

import pytest
import tyro

from ddim.base.records import to_toml
from ddim.cli.groups import (
    ConditionOptions,
    Count,
    DataOptions,
    ModelOptions,
    OutputOptions,
    RunOptions,
    SamplerOptions,
    SweepOptions,
)
from ddim.cli.options import declared, flat, parse, replaced


@dataclasses.dataclass(frozen=True)
class DrawOptions:
    """Draw something."""

    EXAMPLES: ClassVar = ("ddim draw -n 8", "ddim draw a.png --steps 10")

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SOURCE")] = "here"
    """What to draw."""
    n: Count = 64
    """How many."""
    model: ModelOptions = dataclasses.field(default_factory=ModelOptions)
    sampler: SamplerOptions = dataclasses.field(default_factory=SamplerOptions)
    condition: ConditionOptions = dataclasses.field(default_factory=ConditionOptions)
    data: DataOptions = dataclasses.field(default_factory=lambda: DataOptions(data=""))
    output: OutputOptions = dataclasses.field(
        default_factory=lambda: OutputOptions(output="drawn.png")
    )
    run: RunOptions = dataclasses.field(default_factory=lambda: RunOptions(batch_size=3))


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Compare."""

    sweep: SweepOptions = dataclasses.field(default_factory=lambda: SweepOptions(steps=("5", "10")))


def draw(*argv: str) -> DrawOptions:
    return parse(DrawOptions, "draw", argv)


def printed_help(capsys, kind=DrawOptions) -> str:
    with pytest.raises(SystemExit):
        parse(kind, "draw", ["--help"])
    return capsys.readouterr().out


def test_flags_stay_flat_and_land_in_their_groups():
    flags = "-n 8 a.png --model m --steps 5 --labels 1,2 3 --data d --output o --json"
    assert draw(*flags.split()) == DrawOptions(
        source="a.png",
        n=8,
        model=ModelOptions("m"),
        sampler=SamplerOptions(steps=5),
        condition=ConditionOptions(labels=(1, 2, 3)),
        data=DataOptions("d"),
        output=OutputOptions("o"),
        run=RunOptions(batch_size=3, json=True),
    )


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (["trailing"], ("trailing",)),
        (["500,250,0"], ("500", "250", "0")),
        (["500", "250", "0"], ("500", "250", "0")),
        (["500-250-0"], ("500-250-0",)),
    ],
)
def test_nodes_are_a_name_or_numbers(nodes, expected):
    assert draw("--nodes", *nodes).sampler.nodes == expected


def test_lists_of_a_sweep():
    options = parse(
        CompareOptions,
        "compare",
        ["--methods", "ddim,dpmpp:order=3", "f:betas=[1,2]", "--eta=0,sigma-hat"],
    )
    assert options.sweep == SweepOptions(
        methods=("ddim", "dpmpp:order=3", "f:betas=[1,2]"),
        steps=("5", "10"),
        eta=("0", "sigma-hat"),
    )


def test_flat_names_make_a_file_that_is_read_again(tmp_path, refuses):
    options = draw("x", "-n", "3", "--clip", "false", "--option", "a=1", "b=2", "--quiet")
    values = flat(options)
    assert list(values)[:3] == ["source", "n", "model"]
    assert (values["model"], values["clip"], values["option"]) == ("mnist", False, ("a=1", "b=2"))
    assert list(values) == list(declared(DrawOptions))
    path = tmp_path / "run.toml"
    path.write_text(to_toml(values))
    assert draw("--config", str(path)) == options
    assert draw("--config", str(path), "--steps", "5") == replaced(options, steps=5)
    path.write_text("stesp = 5")
    with refuses("run.toml: unknown key 'stesp': did you mean 'steps'"):
        draw("--config", str(path))
    path.write_text('steps = "many"')
    with refuses("run.toml: steps takes a whole number, not 'many'$"):
        draw("--config", str(path))


def test_values_are_filled_in_wherever_they_are_declared():
    options = draw("--method", "heun")
    again = replaced(options, n=1, steps=7, batch_size=8, model="m", force=False)
    assert (again.n, again.sampler, again.run) == (
        1,
        SamplerOptions("heun", steps=7),
        RunOptions(batch_size=8),
    )
    assert again.model == ModelOptions("m")
    assert replaced(again, n=64, steps=None, batch_size=3, model="mnist") == options
    with pytest.raises(TypeError, match="DrawOptions has no option stesp"):
        replaced(options, stesp=1)


def test_two_options_of_one_name_are_a_mistake_of_the_verb():
    double = dataclasses.make_dataclass(
        "Double", [("model", ModelOptions, ModelOptions()), ("dtype", str, "a")], frozen=True
    )
    with pytest.raises(TypeError, match="Double has two options dtype"):
        parse(double, "double", [])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--steps many", "--steps takes a whole number, not 'many'"),
        ("--eta x", "--eta takes a number, not 'x'"),
        (
            "--dtype fp16",
            "--dtype is one of float32, float64, bfloat16, not 'fp16': did you mean bfloat16?",
        ),
        ("--steps", "--steps needs a value"),
        ("--stesp 5", "unknown option --stesp: did you mean --steps?"),
        ("-n x", "-n takes a whole number, not 'x'"),
        ("--labels 1,x", "--labels takes whole numbers, not 'x'"),
        ("--clip maybe", "--clip is true or false, not 'maybe'"),
        ("a b", "unexpected argument 'b'"),
    ],
)
def test_a_wrong_value_is_named_in_one_sentence(refuses, flags, sentence):
    with refuses(f"^{re.escape(sentence)}$"):
        draw(*flags.split())


@pytest.mark.parametrize("columns", ["60", "120"])
def test_help_has_the_groups_in_order_and_ends_with_the_examples(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = printed_help(capsys)
    titles = re.findall(r"^(?:╭─)? ([a-z][a-z ]*?) [ ─]*╮?$", out, re.MULTILINE)
    assert titles == [
        "positional arguments",
        "options",
        *(f"{group} options" for group in ("model", "sampler", "condition", "data")),
        *(f"{group} options" for group in ("output", "run")),
    ]
    assert out.endswith("\n\nexamples:\n  ddim draw -n 8\n  ddim draw a.png --steps 10\n")
    assert "--no-" not in out


def test_help_shows_what_no_value_stands_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    lines = " ".join(printed_help(capsys).replace("│", " ").split())
    for flag, default in {
        "--steps INT": "50",
        "--nodes NAME|K ...": "uniform",
        "--eta FLOAT": "the method's own",
        "--order INT": "the method's own",
        "--labels LABEL ...": "every class in turn",
        "--clip {true,false}": "the model's default",
        "--data STR": "none",
        "--output PATH": "drawn.png",
        "--batch-size INT": "3",
        "--threads INT": "torch's own",
    }.items():
        assert re.search(rf"{re.escape(flag)} [^(]*\(default: {re.escape(default)}\)", lines), flag
    assert "None" not in lines
    assert re.search(r"--force [^(]* run options", lines)
    assert "(default: 5 10)" in printed_help(capsys, CompareOptions)


def test_options_are_read_and_explained_without_torch():
    code = (
        "import sys\n"
        "from ddim.cli.groups import RunOptions\n"
        "from ddim.cli.options import parse\n"
        "try:\n"
        "    parse(RunOptions, 'run', ['--help'])\n"
        "finally:\n"
        "    assert not {'torch', 'numpy'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
