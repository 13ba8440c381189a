"""Commands run by several processes at once, forked from one that has torch already."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

from server import Server

__all__ = ["Jobs", "Process"]

# Reads a job a line and forks its processes. One that stops itself is killed when the others have
# ended. What is answered, for each: exit status and seconds.
SERVER = """
import json, os, signal, sys, time, traceback
import filelock, PIL.Image, tomli_w, torch, torch._dynamo, torch.distributed, torch.nn.parallel
from ddim.cli import main as command
import ddim.cli.train, ddim.train.run
PIL.Image.init(), torch.set_num_threads(1)
for line in sys.stdin:
    count, port, patience, code, words = json.loads(line)
    start, ids = time.monotonic(), []
    for rank in range(count):
        ids.append(os.fork())
        if ids[-1] == 0:
            told = os.open(f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(told, 1), os.dup2(told, 2)
            names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, MASTER_PORT=port)
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            command._PATIENCE = patience
            status, space = 99, {"rank": rank, "count": count}
            try:
                exec(code, space)
                status = command.main(words)
                space.get("after", int)()
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    ended, stopped = {}, []
    while len(ended) < count:
        if len(ended) + len(stopped) == count:
            os.kill(stopped[0], signal.SIGKILL)
            stopped.pop(0)
        number, status = os.waitpid(-1, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            stopped.append(number)
        else:
            ended[number] = os.waitstatus_to_exitcode(status), time.monotonic() - start
    print(json.dumps([ended[number] for number in ids]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Process:
    """How one process of a job ended, after how many seconds, and what it printed."""

    status: int
    seconds: float
    said: str


class Jobs:
    """Runs commands in a folder, each by so many processes that know each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = Server(SERVER, folder)

    def __call__(
        self, count: int, *words: object, code: str = "", patience: float = 20.0
    ) -> list[Process]:
        """Run ``ddim WORDS`` in ``count`` processes.

        Args:
            count: how many.
            words: the command line.
            code: run in each before; it finds ``rank`` and ``count``, and may define ``after()``.
            patience: seconds after which a process that does not answer is taken for dead.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        answers = self._server(count, port, patience, code, [str(word) for word in words])
        said = [(self.folder / f"said.{rank}").read_text() for rank in range(count)]
        return [Process(*answer, text) for answer, text in zip(answers, said, strict=True)]

    def close(self) -> None:
        """End the server."""
        self._server.close()
