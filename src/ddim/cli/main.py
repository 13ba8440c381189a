"""``ddim VERB …``: which verb, and what becomes of errors."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from ddim import __version__
from ddim.base.errors import InputError, RunError, unknown
from ddim.base.files import locked
from ddim.base.lines import as_lines
from ddim.base.ranks import Ranks, joined, leave, told_elsewhere

__all__ = ["GROUPS", "VERBS", "main"]

GROUPS = {
    "start": {
        "demo": "500 DDPM steps beside 50, 20 and 10 DDIM steps, from the same network",
    },
    "make a model": {
        "train": "train a model on images",
        "calibrate": "find the best few steps for a network: nodes, method and weights",
        "convert": "turn a checkpoint of another program into a model folder",
        "push": "put a model folder on the Hugging Face Hub, with a card",
        "checks": "say what a model is, and find what is wrong with it",
    },
    "look": {
        "serve": "show in a browser what models do: samplers side by side, step by step, latents",
    },
    "draw": {
        "sample": "draw images from a model",
        "compare": "draw the same latents in 5 to T steps, or by several methods, a row each",
        "interpolate": "walk between images, from latent to latent",
        "verify": "check every shard of a set of images by its checksum",
        "merge": "put shards that were drawn in several folders into one set",
    },
    "invert": {
        "encode": "turn images into latents",
        "decode": "turn latents back into images",
        "reconstruct": "measure how well images survive encoding and decoding",
    },
    "measure": {
        "evaluate": "measure what each saved step costs, in tables, plots and one page",
        "bench": "time a model on this machine, by every back end, beside diffusers",
        "inspect": "print and plot a schedule, its nodes and the sampler's table of numbers",
    },
}
"""What each verb does, by what it is for."""

VERBS = {verb: summary for verbs in GROUPS.values() for verb, summary in verbs.items()}

_PATIENCE = 60.0
"""Seconds after which a process that takes no part in a training step is taken for dead."""
_DAY = 86400.0
"""The same for the other verbs, whose processes have a batch's time between two exchanges."""

_LOCKING = ("train", "calibrate")
"""Verbs that lock their outputs themselves: in the library, and when the model has said where."""

_ALONE = ("bench", "checks", "convert", "demo", "inspect", "merge", "push", "serve", "verify")
"""Verbs of which several processes would only do the same, or measure each other."""

_OWN = ("device", "threads")
"""Options in which the processes of a job may differ."""

EXAMPLES = ("ddim demo", "ddim sample --model mnist -n 64 --steps 20")


def usage() -> str:
    """What ``ddim --help`` prints."""
    width = max(map(len, VERBS))
    lines: list[str] = []
    for title, verbs in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {verb:<{width}}  {verbs[verb]}" for verb in verbs)]
    return "\n".join(
        [
            "usage: ddim VERB [OPTIONS]",
            "",
            "Denoising diffusion implicit models: train, sample in any number of steps, invert.",
            *lines,
            "",
            "ddim VERB --help explains a verb. Any verb takes --config FILE (TOML), whose keys are",
            "its options, and --debug, which shows where an error comes from.",
            "",
            "ddim --version prints the version. ddim --completion bash (or zsh, fish) prints a",
            "script by which that shell completes verbs, options and their values at the Tab key.",
            "",
            "exit status: 0 done, 1 failure, 2 wrong usage or bad input, 130 interrupted (Ctrl-C),",
            "143 terminated (SIGTERM).",
            "",
            "examples:",
            *(f"  {example}" for example in EXAMPLES),
            "",
        ]
    )


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 done, 1 failure, 2 wrong usage or bad input, 130 interrupted by Ctrl-C,
        143 by SIGTERM.
    """
    with _terminable():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    verb = arguments[0] if arguments else "--help"
    try:
        try:
            status = _run(verb, arguments[1:])
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        what, number = (
            ("terminated", 143) if isinstance(stop, _Terminated) else ("interrupted", 130)
        )
        print(f"ddim {verb}: {what}", file=sys.stderr)
        leave(number, stop)
        return number
    except BrokenPipeError:
        # Whoever read our output has gone: the interpreter, when it ends, must not write to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        elif not told_elsewhere(error):
            print(f"ddim {verb}: {_one_line(error)}", file=sys.stderr)
        number = 2 if isinstance(error, (InputError, FileExistsError, NotADirectoryError)) else 1
        leave(number, error)  # before the error goes, and with it what it holds
        return number
    return status if arguments else 2


def _run(verb: str, argv: Sequence[str]) -> int:
    from ddim.cli.options import flat, parse

    if verb in ("-h", "--help"):
        print(usage(), end="")
        return 0
    if verb == "--version":
        print(f"ddim {__version__}")
        return 0
    if verb == "--completion":
        from ddim.cli.completion import SHELLS, completion

        if len(argv) != 1:
            raise InputError(f"--completion takes the name of a shell: {', '.join(SHELLS)}")
        print(completion(argv[0]), end="")
        return 0
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    module = importlib.import_module(f"ddim.cli.{verb}")
    if {"-h", "--help"} & set(argv):
        return module.main(argv) or 0
    patience = _PATIENCE if verb == "train" else _DAY
    with joined(patience) as ranks, _one_speaker(ranks), _one_fate(ranks, verb):
        options = flat(parse(getattr(module, f"{verb.title()}Options"), verb, argv))
        _check_job(ranks, verb, options)
        if options.get("log") and options.get("quiet"):
            raise InputError("--log prints lines and --quiet none: give one")
        with _one_writer(verb, options), as_lines(bool(options.get("log"))):
            return module.main(argv) or 0


@contextlib.contextmanager
def _one_speaker(ranks: Ranks) -> Iterator[None]:
    """Of several processes the first prints results and remarks; errors are printed later."""
    if ranks.first:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,  # noqa: PTH123
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _one_fate(ranks: Ranks, verb: str) -> contextlib.AbstractContextManager[None]:
    """What fails in one of several processes fails in all.

    Those that train exchange gradients between their words, and notice a dead one by that.
    """
    return contextlib.nullcontext() if verb == "train" else ranks.together()


def _check_job(ranks: Ranks, verb: str, options: Mapping[str, object]) -> None:
    """Keep several processes to one command.

    Raises:
        InputError: a verb that runs in one, or options that differ.
    """
    if ranks.count == 1:
        return
    if verb in _ALONE:
        raise InputError(f"ddim {verb} runs in one process: start it without torchrun")
    ranks.agree({f"--{k.replace('_', '-')}": v for k, v in options.items() if k not in _OWN})


@contextlib.contextmanager
def _one_writer(verb: str, options: Mapping[str, object]) -> Iterator[None]:
    """Keep others from writing the output that the options name, before anything looks at it."""
    if verb in _LOCKING:
        yield
        return
    folder = options.get("dest")
    output = folder or options.get("onnx") or options.get("output")
    # In a set of shards a process claims each shard by itself.
    if output is None or options.get("dry_run") or options.get("shard_size"):
        yield
        return
    path = Path(str(output))
    with locked(path, folder=folder is not None or not path.suffix):
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Take SIGTERM as Ctrl-C, where nobody has decided otherwise."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        where = f" {error.filename}" if error.filename else ""
        text = f"cannot write or read{where}: {error.strerror}"
    expected = isinstance(error, (InputError, RunError, OSError))
    return text if expected else f"{type(error).__name__}: {text} (--debug shows where)"


if __name__ == "__main__":
    sys.exit(main())
