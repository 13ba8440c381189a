"""Commands that are killed: each in a new process, forked from one that has torch already."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from ddim.model.model import Model
from ddim.noise.schedule import Schedule
from server import Server
from tiny import tiny_unet

# Reads a job a line. The kill comes before the nth of some changes of a folder, or after so many
# seconds; what is answered is the exit status, the number of changes and the seconds.
SERVER = """
import importlib, json, os, signal, sys, time
import matplotlib.figure, torch
from ddim.cli.main import VERBS, main
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
for name in (*(f"cli.{verb}" for verb in VERBS), "latents.coding", "evaluate.sweep.sweep"):
    importlib.import_module(f"ddim.{name}")
for line in sys.stdin:
    words, events, change, seconds, number = json.loads(line)
    start = time.perf_counter()
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)

        def watch(event, arguments):
            if event in events and (event != "open" or arguments[2] & os.O_ACCMODE):
                os.write(write, b"x")
                watch.left -= 1
                if watch.left == 0:
                    os.kill(os.getpid(), number)

        watch.left = change
        sys.addaudithook(watch)
        status = main(words)
        sys.stdout.flush()
        os._exit(status)
    os.close(write)
    if seconds:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    changes = len(os.read(read, 9999))
    os.close(read)
    print(json.dumps([status, changes, time.perf_counter() - start]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    changes: int
    seconds: float
    said: str


class Runner:
    """Runs commands in a folder, each in a new process, and kills them when told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = Server(SERVER, folder, HOME=str(folder))

    def __call__(
        self,
        *words: object,
        change: int = 0,
        seconds: float = 0,
        events: Sequence[str] = ("os.rename",),
        number: int = signal.SIGKILL,
    ) -> Ended:
        """Run ``ddim WORDS``, to its end or until it is killed."""
        job = [str(word) for word in words], list(events), change, seconds, number
        status, changes, taken = self._server(*job)
        return Ended(status, changes, taken, (self.folder / "log").read_text())

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """The runner; its folder has an untrained model, images and a function of features."""
    folder = tmp_path_factory.mktemp("killed")
    net = tiny_unet()
    Model(net, Schedule.linear(20, 0.01, 0.4), "eps", (1, 8, 8)).save(folder / "tiny")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    np.savez(folder / "data.npz", images=pixels)
    (folder / "features.py").write_text("def first(x):\n    return x.flatten(1)[:, :3].double()\n")
    runner = Runner(folder)
    yield runner
    runner.close()
