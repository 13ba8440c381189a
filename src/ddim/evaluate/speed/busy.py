"""A process that keeps one core busy, for as long as it is wanted and no longer."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from ddim.base.errors import RunError

__all__ = ["busy_process"]

SPIN = """
import os, sys, threading

def watch():
    sys.stdin.buffer.read()  # until whoever started this closes the pipe, or is no more
    os._exit(0)

threading.Thread(target=watch, daemon=True).start()
print(".", end="", flush=True)
while True:
    pass
"""


@contextlib.contextmanager
def busy_process() -> Iterator[int]:
    """Another process that computes without a pause, of the priority of this one.

    It ends with the block, however that is left. It ends by itself when this process is killed.

    Yields:
        its process id, once it computes.

    Raises:
        RunError: it did not start.
    """
    # In a session of its own, so that Ctrl-C on the terminal is for this process alone.
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", SPIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            if process.stdout is None or process.stdout.read(1) != b".":
                raise RunError("the busy process did not start")
            yield process.pid
        finally:
            process.kill()
