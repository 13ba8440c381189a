"""The processes of a torchrun job: which of them this is, and what they say to each other."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ddim.base.errors import InputError, RunError, quoted

__all__ = [
    "ONE",
    "Ranks",
    "answering",
    "apart",
    "code_digest",
    "here",
    "joined",
    "launched",
    "leave",
    "told_elsewhere",
]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """A process among those of its job; alone by default, when nothing is ever sent.

    Attributes:
        rank: which one, from 0; the first writes what all of them make.
        count: how many there are.
        local: which one on its machine, and so which of its GPUs it takes.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What each process gives, in their order, to all of them; values that pickle takes.

        Raises:
            RunError: another process has died, or does not answer within the job's timeout; or what
                another process raised in :meth:`together`, an InputError if that was one.
        """
        if self.count == 1:
            return [value]
        found = self._exchange(value)
        for rank, other in enumerate(found):
            if isinstance(other, _Failure):
                raise other.error(rank, self)
        return found

    def _exchange(self, value: object) -> list[Any]:
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        with answering(self):
            dist.all_gather_object(found, value)
        return found

    def share(self, value: T) -> T:
        """What the first process gives, to all of them.

        Raises:
            RunError: as :meth:`gather`.
        """
        return self.gather(value if self.first else None)[0]  # pyright: ignore[reportReturnType]

    def own(self, count: int) -> range:
        """Which of so many jobs this process does where they take them in turn.

        Example:
            >>> Ranks(1, 3).own(8)
            range(1, 8, 3)
        """
        return range(self.rank, count, self.count)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise in every process what one of them raises in this context.

        Each of the others raises it from the next :meth:`gather` that it comes to. All that they
        exchange in here goes by that: a process that fails takes part in it once more, and says
        why. The first process is the one to tell people, see :func:`told_elsewhere`.
        """
        try:
            yield
        except Exception as error:
            if self.count > 1 and _KNOWN not in vars(error):
                with contextlib.suppress(RunError):  # the others have ended, or died
                    self._exchange(_Failure.of(error))
                    vars(error)[_KNOWN] = self
            raise

    def wait(self) -> None:
        """Wait until every process has come as far as this.

        Raises:
            RunError: as :meth:`gather`.
        """
        self.gather(None)

    def agree(self, facts: Mapping[str, object]) -> None:
        """Refuse processes that are not about to do the same.

        Args:
            facts: what must be equal in all of them, by name.

        Raises:
            InputError: the first fact that is not, in every process; or RunError as
                :meth:`gather`.
        """
        every = self.gather(dict(facts))
        for rank, other in enumerate(every):
            for key, value in every[0].items():
                if other.get(key) != value:
                    error = InputError(
                        f"the processes of this job differ in {key}: {quoted(value)} in process 0, "
                        f"{quoted(other.get(key))} in process {rank}"
                    )
                    vars(error)[_KNOWN] = self  # all of them raise it
                    raise error


_KNOWN = "_known_to_all"
"""The mark of an error that all processes raise: the one that this is. None where the others cannot
be told, or need not be."""


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What a process gives in place of what was to be exchanged."""

    text: str
    bad_input: bool

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        known = isinstance(error, InputError | RunError | OSError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(text, isinstance(error, InputError | FileExistsError | NotADirectoryError))

    def error(self, rank: int, ranks: Ranks) -> InputError | RunError:
        kind = InputError if self.bad_input else RunError
        error = kind(f"process {rank} of {ranks.count}: {self.text}")
        vars(error)[_KNOWN] = ranks
        return error


def told_elsewhere(error: BaseException) -> bool:
    """Whether another process, the first, tells people of an error that was raised in all."""
    ranks = vars(error).get(_KNOWN)
    return ranks is not None and not ranks.first


ONE = Ranks()
_here = ONE
_several = False


def here() -> Ranks:
    """The process that this is, in the job of :func:`joined`.

    Its processes run the same command and come to the same results, since what each of them draws
    is exchanged; the first alone writes files, see :mod:`ddim.base.files`.
    """
    return _here


def launched() -> bool:
    """Whether torchrun, or what sets the same variables, started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Be alone for as long as the context lasts: each process does, and writes, work of its own.

    What one of them raises in it is its own, and ends no other: see :meth:`Ranks.together`.
    """
    global _here
    before, _here = _here, ONE
    try:
        yield
    except Exception as error:
        vars(error).setdefault(_KNOWN, None)
        raise
    finally:
        _here = before


@contextlib.contextmanager
def joined(timeout: float = 60.0) -> Iterator[Ranks]:
    """Join the other processes of the job, for as long as the context lasts.

    Objects and tensors on the CPU go by gloo, tensors on CUDA by nccl. A process that was not
    launched as one of several is alone.

    Args:
        timeout: seconds after which a process that does not answer is taken for dead.

    Raises:
        InputError: processes of different versions of this package.
        RunError: the others cannot be reached.
    """
    global _here, _several
    if not launched() or _here is not ONE:
        yield _here
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    try:
        rank, count, local = (int(os.environ.get(name, "0")) for name in names)
    except ValueError:
        raise InputError(f"{', '.join(names)} are whole numbers, as torchrun sets them") from None
    if count == 1:
        yield _here
        return
    ranks = Ranks(rank, count, local)
    cuda = torch.cuda.is_available() and dist.is_nccl_available()
    if cuda:
        torch.cuda.set_device(local % torch.cuda.device_count())
    wait, _several = datetime.timedelta(seconds=timeout), True
    with answering(ranks):
        # torchrun's store outlives a restart, and the addresses of the processes before are in it.
        store, _, _ = next(rendezvous("env://", timeout=wait))
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore(f"ddim {again}", store),
            rank=rank,
            world_size=count,
            timeout=wait,
        )
    _here, failed = ranks, True
    try:
        ranks.agree({"the code of ddim": code_digest(), "the version of torch": torch.__version__})
        yield ranks
        failed = False
    except Exception as error:
        if vars(error).get(_KNOWN) is not None:
            # Nobody ends before the first can tell: torchrun ends the others then.
            with contextlib.suppress(RunError):
                ranks._exchange(None)
            failed = False
        raise
    finally:
        _here = ONE
        if not failed:  # else its threads may wait for a process that is gone, see leave()
            dist.destroy_process_group()


def leave(status: int, error: BaseException) -> None:
    """End a process that was one of several and has failed by itself; any other goes on.

    torch's threads may wait for a process that is gone, and its objects for these threads when they
    are taken apart, so that the interpreter never comes to its end: nothing is taken apart.

    Args:
        status: the exit status.
        error: why; where all processes have it, all of them come to their ends.
    """
    if not _several or vars(error).get(_KNOWN) is not None:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextlib.contextmanager
def answering(ranks: Ranks) -> Iterator[None]:
    """Say in one line what torch says, in an exchange, of a process that is gone.

    Raises:
        RunError: the exchange within the context has failed.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        vain = RunError(
            f"process {ranks.rank} of {ranks.count} waited in vain for the others: one has died, "
            f"or does not answer: {_first_sentence(str(error))}"
        )
        vars(vain)[_KNOWN] = None  # another exchange would wait for the same one
        raise vain from error


def _first_sentence(text: str) -> str:
    """Of torch's message, without the place in its source and what it advises."""
    line = re.sub(r"\[/[^]]*\] *", "", text.partition("\n")[0])
    return f"{line.partition('. ')[0]:.200}"


def code_digest() -> str:
    """SHA-256 of this package's source files, in hexadecimal."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
