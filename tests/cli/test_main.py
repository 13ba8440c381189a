from __future__ import annotations

import dataclasses
import errno
import importlib
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import ddim.cli.sample
from ddim import __version__
from ddim.base.errors import RunError
from ddim.base.files import locked
from ddim.cli.main import GROUPS, VERBS
from ddim.cli.options import declared, parse

NO_TORCH = """
import sys
import ddim
assert not {"torch", "numpy"} & set(sys.modules)
from ddim.cli.main import VERBS, main
for argv in (
    ["--help"], ["--version"], [], ["smaple"], ["inspect", "--setps", "3"],
    ["sample", "--output", "x.jpg"], ["train"], ["train", "--preset", "mnits"],
    *([verb, "--help"] for verb in VERBS), ["train", "--preset", "mnist", "--help"],
):
    try:
        main(argv)
    except SystemExit as stop:
        assert stop.code == 0
    loaded = {"torch", "PIL", "safetensors"} & set(sys.modules)  # a preset checks its schedule
    assert not loaded, (argv, loaded)
"""


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, *arguments], env=environment, text=True, timeout=300, **options
    )


def test_help_and_bad_usage_answer_without_torch():
    done = run("-c", NO_TORCH, capture_output=True)
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr


def test_help_names_every_verb(ddim):
    for flag in ("--help", "-h"):
        answer = ddim(flag)
        assert (answer.status, answer.err) == (0, "")
        for verb, summary in VERBS.items():
            assert f"  {verb} " in answer.out
            assert summary in answer.out


def test_help_has_groups_and_two_examples(ddim):
    out = ddim("--help").out
    assert re.findall(r"^([a-z ]+):$", out, re.MULTILINE) == [*GROUPS, "examples"]
    examples = out.partition("\nexamples:\n")[2].splitlines()
    assert len(examples) == 2
    assert all(example.startswith("  ddim ") for example in examples)


def test_no_verb_is_wrong_usage(ddim):
    answer = ddim()
    assert answer.status == 2
    assert answer.out.startswith("usage: ddim VERB")


def test_version(ddim):
    assert ddim("--version").out == f"ddim {__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(ddim, verb):
    answer = ddim(verb, "--help")
    assert (answer.status, answer.err) == (0, "")
    assert f"usage: ddim {verb}" in answer.out
    assert {
        "convert": "DEST",
        "checks": "MODEL",
        "calibrate": "MODEL",
        "verify": "FOLDER",
        "push": "FOLDER",
        "serve": "--port",
    }.get(verb, "--output") in answer.out


def options_of(verb: str) -> type:
    """The dataclass of a verb's options."""
    return getattr(importlib.import_module(f"ddim.cli.{verb}"), f"{verb.title()}Options")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_groups_of_options_whose_names_do_not_collide(ddim, monkeypatch, verb):
    monkeypatch.setenv("COLUMNS", "120")
    options = declared(options_of(verb))  # which refuses two of one name
    assert all(options[name].switch for name in {"force", "json", "quiet"} & options.keys())
    assert "json" in options
    out = ddim(verb, "--help").out
    kinds = typing.get_type_hints(options_of(verb))
    groups = [name for name, kind in kinds.items() if dataclasses.is_dataclass(kind)]
    assert groups
    for group in groups:
        assert re.search(rf"^(╭─)? ?{group} options ", out, re.MULTILINE), group
    for name, option in options.items():
        flag = name.replace("_", "-")
        assert option.positional or re.search(rf" --(no-)?{flag}\b", out), name
        assert not re.search(rf"--no-{flag}\b", out) or option.switch, name
    for flag in ("force", "json", "quiet", "resume"):
        assert f"--no-{flag}" not in out
        assert f"--{flag}" in out or flag not in options


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_two_examples_that_it_understands(ddim, verb):
    kind = options_of(verb)
    shown = ddim(verb, "--help").out.partition("\nexamples:\n")[2].splitlines()
    assert [line.strip() for line in shown] == list(kind.EXAMPLES)
    assert len(kind.EXAMPLES) == 2
    for example in kind.EXAMPLES:
        program, name, *argv = shlex.split(example)
        assert (program, name) == ("ddim", verb)
        parse(kind, verb, argv)


@pytest.mark.parametrize(
    ("verb", "written"),
    [
        ("convert", "out/unet/diffusion_pytorch_model.safetensors"),
        ("encode", "out.safetensors"),
        ("train", "out/checkpoint.safetensors"),
    ],
)
def test_a_write_that_the_system_refuses_names_the_file(
    fails, tiny, noise_data, tmp_path, verb, written
):
    """Not a simulated error: a limit on the size of files, which tensors are the first to pass."""
    arguments = {
        "convert": (tiny, "out"),
        "encode": ("--model", tiny, "--data", noise_data, "-n", 40, "--steps", 2, "--quiet"),
        "train": ("--data", noise_data, "--channels", 8, 16, "--groups", 4, "--images", 64),
    }[verb]
    if verb == "encode":
        arguments += ("--output", written)
    if verb == "train":
        arguments += ("--output", "out", "--quiet")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        line = fails(1, "", verb, *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert line == f"ddim {verb}: cannot write or read {written}: {os.strerror(errno.EFBIG)}"
    assert not [path for path in tmp_path.rglob("*.safetensors*") if path.is_file()]


def test_unknown_verb(fails):
    fails(2, "unknown verb 'smaple': did you mean 'sample'", "smaple")
    fails(2, r"unknown verb 'x' \(choices: demo, train", "x", "--steps", "3")


def raise_in_sample(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(argv: object) -> int:
        raise error

    monkeypatch.setattr(ddim.cli.sample, "main", fail)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RunError("the loss is no longer finite"), "the loss is no longer finite"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "cannot write or read: No space left on device",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x/y.png"),
            "cannot write or read /x/y.png: Permission denied",
        ),
        (ValueError("two\n  lines"), "ValueError: two lines (--debug shows where)"),
        (ZeroDivisionError(), "ZeroDivisionError: ZeroDivisionError (--debug shows where)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_trap_a_failure_is_one_line_and_status_1(fails, monkeypatch, error, line):
    raise_in_sample(monkeypatch, error)
    assert fails(1, "", "sample") == f"ddim sample: {line}"


def test_interruption_is_status_130(fails, monkeypatch):
    raise_in_sample(monkeypatch, KeyboardInterrupt())
    fails(130, "interrupted", "sample")


VERBS_THAT_WRITE = {
    "sample": ("--output", "out"),
    "decode": ("--output", "out"),
    "evaluate": ("--output", "out"),
    "reconstruct": ("--output", "out"),
    "convert": ("mnist", "out"),
    "compare": ("--output", "x.png"),
    "demo": ("--output", "x.png"),
    "interpolate": ("--output", "x.webp"),
    "encode": ("--output", "x.safetensors"),
    "inspect": ("--output", "x.png"),
    "bench": ("--output", "x.md"),
}


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
def test_a_second_writer_is_refused_by_name(fails, monkeypatch, tmp_path, verb):
    """And the first, when it fails, leaves neither its lock nor a folder that it made for it."""
    words = VERBS_THAT_WRITE[verb]

    def first(argv: object) -> int:
        del argv
        match = f"^ddim {verb}: {words[-1]} is being written by another process: wait"
        for more in ((), ("--force",)):
            fails(2, match, verb, *words, *more)
        raise RunError("the disk is on fire")

    module = importlib.import_module(f"ddim.cli.{verb}")
    monkeypatch.setattr(module, "main", first)
    fails(1, "on fire", verb, *words)
    assert list(tmp_path.iterdir()) == []


def test_saying_what_there_is_to_do_needs_no_lock(ddim, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("ddim.cli.evaluate.main", lambda argv: 0)
    with locked(tmp_path / "out"):
        assert ddim("evaluate", "--output", "out", "--dry-run").status == 0
        assert ddim("evaluate", "--output", "out").status == 2


@pytest.mark.parametrize("verb", [*VERBS_THAT_WRITE, "train", "calibrate", "checks"])
def test_sigterm_is_ctrl_c_with_a_status_of_its_own(fails, monkeypatch, verb):
    def stopped(argv: object) -> int:
        del argv
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:  # as code sees it that tidies up
            raise
        return 0

    monkeypatch.setattr(importlib.import_module(f"ddim.cli.{verb}"), "main", stopped)
    before = signal.getsignal(signal.SIGTERM)
    fails(143, "terminated", verb, *VERBS_THAT_WRITE.get(verb, ()))
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_that_is_ignored_stays_so(ddim, monkeypatch):
    def stopped(argv: object) -> int:
        del argv
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(importlib.import_module("ddim.cli.sample"), "main", stopped)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert ddim("sample").status == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_help_and_readme_say_the_exit_statuses(ddim):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for text in (ddim("--help").out, readme):
        plain = " ".join(text.split())
        assert (
            "0 done, 1 failure, 2 wrong usage or bad input, 130 interrupted (Ctrl-C), 143 "
            "terminated (SIGTERM)"
        ) in plain


@pytest.mark.parametrize("verb", ["sample", "decode"])
@pytest.mark.parametrize("output", ["out", "x.npz"])
def test_columns_are_refused_where_there_is_no_grid(fails, tmp_path, verb, output):
    fails(2, f"--columns is for a grid .*, not {output}$", verb, "--columns", 3, "--output", output)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_where_and_keeps_the_status(ddim, monkeypatch):
    answer = ddim("--debug", "smaple")
    assert (answer.status, "Traceback" in answer.err) == (2, True)
    answer = ddim("sample", "--debug", "--steps", "x")
    assert answer.status == 2
    assert "Traceback" in answer.err
    assert "InputError" in answer.err
    raise_in_sample(monkeypatch, ZeroDivisionError("by nothing"))
    answer = ddim("sample", "--debug")
    assert answer.status == 1
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: by nothing" in answer.err
    assert "Traceback" not in ddim("sample").err


def test_a_reader_who_goes_away_is_told_nothing_more():
    for arguments in (["--help"], ["sample", "--help"], ["inspect", "--steps", "4"]):
        read, write = os.pipe()
        os.close(read)
        done = run("-m", "ddim.cli.main", *arguments, stdout=write, stderr=subprocess.PIPE)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, ""), arguments


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_bad_usage_is_clear_on_a_terminal_in_colour():
    controller, terminal = os.openpty()
    done = run(
        "-m",
        "ddim.cli.main",
        "sample",
        "--setps",
        "3",
        stdout=terminal,
        stderr=subprocess.PIPE,
        env={"TERM": "xterm-256color", "FORCE_COLOR": "1"},
    )
    os.close(terminal)
    os.close(controller)
    assert done.returncode == 2
    assert done.stderr == ("ddim sample: unknown option --setps: did you mean --steps?\n")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_bad_usage_is_clear_in_every_encoding(encoding):
    done = run(
        "-m",
        "ddim.cli.main",
        "inspect",
        "--methd",
        "ddpm",
        capture_output=True,
        env={"PYTHONIOENCODING": encoding, "COLUMNS": "40"},
    )
    assert done.returncode == 2
    assert done.stderr == ("ddim inspect: unknown option --methd: did you mean --method?\n")
