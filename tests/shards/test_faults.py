"""Disks that are full, late, or not ours; and writers at the same time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddim.base import files as base_files
from ddim.base.files import retried
from ddim.shards.checking import verify
from ddim.shards.drawing import draw
from ddim.shards.progress import Progress

SETTINGS = {"steps": 2, "shard_size": 4, "batch_size": 2}
WORDS = ["sample", "--steps", "2", "--batch-size", "2", "--shard-size", "4", "--device", "cpu"]
WORDS += ["--quiet"]


def exhaust(model, folder, n, **settings):
    return sum(told.images for told in draw(model, folder, n, **(SETTINGS | settings)))


@pytest.fixture
def saved(tmp_path, model) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def failing(monkeypatch, code: int, times: int):
    """The system's rename fails so often."""
    real, left = Path.replace, [times]

    def replace(self, target):
        if left[0] > 0:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    return left


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_an_error_that_passes_is_waited_for(tmp_path, model, files, monkeypatch, caplog, code):
    exhaust(model, tmp_path / "whole", 10)
    monkeypatch.setattr(base_files.time, "sleep", lambda _: None)
    failing(monkeypatch, code, 4)
    exhaust(model, tmp_path / "late", 10)
    assert files(tmp_path / "late") == files(tmp_path / "whole")
    assert caplog.text.count("trying again") == 4


def test_an_error_that_stays_ends_it_and_the_next_call_goes_on(tmp_path, model, files, monkeypatch):
    exhaust(model, tmp_path / "whole", 10)
    pauses = []
    monkeypatch.setattr(base_files.time, "sleep", pauses.append)
    with monkeypatch.context() as patch:
        steps = iter(draw(model, tmp_path / "set", 10, **SETTINGS))
        next(steps)
        failing(patch, errno.EIO, 1000)
        with pytest.raises(OSError, match="Input/output"):
            list(steps)
    assert pauses == [0.5, 1, 2, 4, 8]
    exhaust(model, tmp_path / "set", 10)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_full_disk_is_not_waited_for(tmp_path, monkeypatch, code):
    monkeypatch.setattr(base_files.time, "sleep", lambda _: pytest.fail("it waits"))

    def write():
        raise OSError(code, os.strerror(code))

    with pytest.raises(OSError, match=os.strerror(code)):
        retried(write, "it")


def test_a_store_that_answers_late_gets_the_same_bytes(tmp_path, model, files, monkeypatch):
    import time

    exhaust(model, tmp_path / "whole", 10)
    real = Path.replace

    def late(self, target):
        time.sleep(0.05)
        return real(self, target)

    monkeypatch.setattr(Path, "replace", late)
    exhaust(model, tmp_path / "late", 10)
    assert files(tmp_path / "late") == files(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs rights that this user does not have")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_it_in_one_line_and_more_room_lets_it_go_on(
    tmp_path, saved, small_disk, files
):
    words = [*WORDS, "--model", str(saved), "-n", "400", "--shard-size", "40"]

    def run(output):
        command = [sys.executable, "-m", "ddim", *words, "--output", str(output)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert run(tmp_path / "whole").returncode == 0
    ended = run(small_disk / "set")
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
    assert "No space left on device" in ended.stderr
    assert 0 < len(list((small_disk / "set").glob("*.npz"))) < 10
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert run(small_disk / "set").returncode == 0
    wanted, found = files(tmp_path / "whole"), files(small_disk / "set")
    assert {k: v for k, v in found.items() if k != "run.toml"} == {
        k: v for k, v in wanted.items() if k != "run.toml"
    }


def test_a_folder_that_is_not_ours_is_refused_in_one_line(tmp_path, saved, model, files):
    """By another user: the superuser writes everywhere."""
    if os.geteuid() != 0:
        pytest.skip("taking another user's place needs rights that this user does not have")
    theirs = tmp_path / "theirs"
    exhaust(model, theirs, 8)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    theirs.chmod(0o555)
    before = files(theirs)
    script = (
        "import os, sys; from ddim.cli.main import main; "
        "assert main([*sys.argv[1:-1], sys.argv[-1] + '-mine']) == 0; "  # imports are root's
        "os.setgid(65534); os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    words = [*WORDS, "--model", str(saved), "-n", "12", "--backend", "torch"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--output", str(theirs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": "/tmp"},
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "Permission denied" in done.stderr
    assert files(theirs) == before


def test_writers_at_the_same_time(tmp_path, model, files):
    """Threads with claims of their own, as processes have: each image is drawn once."""
    exhaust(model, tmp_path / "whole", 60)
    counts, errors = [], []

    def work():
        try:
            counts.append(exhaust(model, tmp_path / "set", 60))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(counts) == 60
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_two_that_draw_the_same_shard_do_no_harm(tmp_path, model, files, monkeypatch):
    """As where locks are not seen and a lease ended too early."""
    exhaust(model, tmp_path / "whole", 12)
    first = iter(draw(model, tmp_path / "set", 12, **SETTINGS))
    next(first)
    monkeypatch.setattr("ddim.shards.claims.Claims.take", lambda self, number: True)
    monkeypatch.setattr("ddim.shards.claims.Claims.release", lambda self, number: None)
    exhaust(model, tmp_path / "set", 12)
    monkeypatch.undo()
    list(first)
    assert files(tmp_path / "set") == files(tmp_path / "whole")


def test_a_record_without_its_shard_is_not_believed(tmp_path, model):
    from ddim.data.manifest import Shard

    exhaust(model, tmp_path, 4)
    steps = iter(draw(model, tmp_path, 12, **SETTINGS))
    next(steps)
    steps.close()
    progress = Progress(tmp_path, draw(model, tmp_path, 12, **SETTINGS).manifest)
    progress.note(Shard(2, 4, 5, "0" * 64))
    assert exhaust(model, tmp_path, 12) > 0
    assert verify(tmp_path).whole
