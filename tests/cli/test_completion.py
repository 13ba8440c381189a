"""What a shell completes: the script is read by real shells, where they are installed."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys

import pytest

from ddim.cli.completion import OFFERS, SHELLS, completed, completion
from ddim.cli.main import VERBS
from ddim.cli.options import declared
from ddim.model.opening import shipped
from ddim.samplers.lookup import method_names


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ddim.bash"
    path.write_text(completion("bash"), encoding="utf-8")
    return path


@pytest.fixture
def complete(script, tmp_path):
    """What bash offers for the words of a command line, the last of which is being typed."""
    for name in ("photo.png", "photos", "model.ckpt"):
        (tmp_path / name).touch()

    def run(*words: str) -> list[str]:
        typed = " ".join(f"'{word}'" for word in ("ddim", *words))
        command = (
            f"source '{script}'; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _ddim; "
            'for word in "${COMPREPLY[@]}"; do printf "%s\\n" "$word"; done'
        )
        done = subprocess.run(
            ["bash", "--norc", "-c", command],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    return run


def test_bash_completes_verbs(complete):
    assert complete("") == [*VERBS, "--help", "--version", "--completion"]
    assert complete("in") == ["interpolate", "inspect"]
    assert complete("--comp") == ["--completion"]
    assert complete("--completion", "") == list(SHELLS)


@pytest.mark.parametrize("verb", VERBS)
def test_bash_completes_every_option_of_a_verb(complete, verb):
    module = importlib.import_module(f"ddim.cli.{verb}")
    options = declared(getattr(module, f"{verb.title()}Options")).values()
    offered = complete(verb, "-")
    for option in options:
        name = option.name.replace("_", "-")
        assert option.positional or {f"--{name}", f"--no-{name}"} & set(offered), name
        assert set(option.aliases) <= set(offered)
    assert {"--config", "--debug", "--help"} <= set(offered)
    assert complete(verb, "--no-such") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("sample", "--method", ""), [*method_names(), "model.ckpt", "photo.png", "photos"]),
        (("sample", "--method", "dpm-"), [n for n in method_names() if n.startswith("dpm-")]),
        (("sample", "--model", "mn"), shipped()),
        (("sample", "--model", "=", "mn"), shipped()),
        (("sample", "--backend", "o"), ["openvino"]),
        (("sample", "--dtype", "float"), ["float32", "float64"]),
        (("sample", "--clip", ""), ["true", "false"]),
        (("sample", "--nodes", "u"), ["uniform"]),
        (("sample", "--output", "pho"), ["photo.png", "photos"]),
        (("sample", "--config", "mod"), ["model.ckpt"]),
        (("sample", "--steps", ""), []),
        (("sample", "-n", ""), []),
        (("sample", "--resume", ""), []),
        (("compare", "--methods", "ddim", "dpmpp", "he"), ["heun"]),
        (("compare", "--eta", "-1", "0", "s"), ["sigma-hat"]),
        (("compare", "--model", "mnist", "--meth"), ["--methods"]),
        (("reconstruct", "--codecs", "obelm", "ed"), ["edict"]),
        (("bench", "--parts", "im"), ["images"]),
        (("bench", "mn"), shipped()),
        (("bench", "--dtype", "auto", "mn"), shipped()),
        (("merge", "part", "pho"), ["photo.png", "photos"]),
        (("train", "--preset", "cele"), ["celeba"]),
        (("nothing", "--model", ""), []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes_values(complete, words, offered):
    assert sorted(complete(*words)) == sorted(offered)


def test_bash_calls_the_function_for_ddim(script):
    done = subprocess.run(
        ["bash", "--norc", "-c", f"source '{script}'; complete -p ddim"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "complete -F _ddim ddim\n"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(tmp_path, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(completion(shell), encoding="utf-8")
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fish_completes(tmp_path):
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    path = tmp_path / "ddim.fish"
    path.write_text(completion("fish"), encoding="utf-8")

    def offered(line: str) -> list[str]:
        command = f"source {path}; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", command],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.stderr == ""
        return [word.partition("\t")[0] for word in done.stdout.splitlines()]

    assert set(VERBS) <= set(offered("ddim "))
    assert offered("ddim sample --meth") == ["--method"]
    assert set(offered("ddim sample --backend ")) == {
        *("auto", "torch", "ncnn", "openvino", "cuda-graph", "compile")
    }
    assert set(shipped()) <= set(offered("ddim sample --model "))


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_and_flag_is_in_every_script(shell):
    text = completion(shell)
    for verb in VERBS:
        assert verb in text
        for one in completed(verb):
            assert all(flag.lstrip("-") in text for flag in one.flags)
            assert len(one.flags) > 0 or one.takes != "none"
            assert one.about, (verb, one)


def test_every_list_of_values_is_of_an_option():
    names = set()
    for verb in VERBS:
        module = importlib.import_module(f"ddim.cli.{verb}")
        options = declared(getattr(module, f"{verb.title()}Options"))
        names |= options.keys() | {f"{verb} {name}" for name in options}
    assert OFFERS.keys() <= names


def test_the_command_prints_a_script_without_torch(ddim, fails):
    answer = ddim("--completion", "bash")
    assert (answer.status, answer.out, answer.err) == (0, completion("bash"), "")
    fails(2, "unknown shell 'bsh': did you mean 'bash'", "--completion", "bsh")
    fails(2, "--completion takes the name of a shell: bash, zsh, fish", "--completion")
    code = (
        "import sys; from ddim.cli.completion import completion; "
        "[completion(shell) for shell in ('bash', 'zsh', 'fish')]; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
