from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddim.base.files import (
    locked,
    read_json,
    refuse_existing,
    replacing,
    write_bytes,
    write_json,
)


def test_a_failure_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("told", [None, "data.bin"])
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path, told):
    """The system names none; a file that an error does name is another one, read for this."""
    path = tmp_path / "weights.bin"
    with pytest.raises(OSError, match="No space") as raised, replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), told)
    assert raised.value.filename == (told or str(path))


def test_until_the_end_readers_see_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # a rename is atomic within one file system only
        assert temporary.suffix == ".json"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    """A temporary file is private; the finished one must not be."""
    before = os.umask(0o027)
    try:
        write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\xff")
    finally:
        os.umask(before)
    path = tmp_path / "deep" / "er" / "a.bin"
    assert path.read_bytes() == b"\x00\xff"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_round_trip(tmp_path):
    value = {"α": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "α" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_floats_survive_json_to_the_last_bit(tmp_path):
    value = {"x": [0.1, 1 / 3, 5e-324, 1e308]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_json_refusals(tmp_path, refuses):
    with refuses("there is no file"):
        read_json(tmp_path / "absent.json")
    for content, message in (
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1]", "object"),
    ):
        (tmp_path / "bad.json").write_bytes(content)
        with refuses(message):
            read_json(tmp_path / "bad.json")


def test_a_value_that_json_cannot_say_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert not list(tmp_path.iterdir())


def test_existing_output_is_refused_unless_forced(tmp_path, refuses):
    path = tmp_path / "out"
    refuse_existing(path, force=False)
    path.mkdir()
    refuse_existing(path, force=False)  # an empty folder holds nothing to lose
    (path / "image.png").write_bytes(b"")
    with refuses("exists already: give --force"):
        refuse_existing(path, force=False)
    with refuses("exists already"):
        refuse_existing(path / "image.png", force=False)
    refuse_existing(path, force=True)
    assert json.dumps([p.name for p in path.iterdir()]) == '["image.png"]'
    (path / "image.png").rename(path / ".lock")
    refuse_existing(path, force=False)  # left by a killed process


# -- locks ----------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from ddim.base.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture(params=["folder", "file", "new file"])
def output(request, tmp_path) -> Path:
    path = tmp_path / "out"
    if request.param == "folder":
        path.mkdir()
    elif request.param == "file":
        path.write_bytes(b"old")
    return path


def test_one_writer_for_each_output(tmp_path, output, refuses):
    (tmp_path / "link").symlink_to(output)
    with hold(output) as other:
        for same in (output, tmp_path / "link", tmp_path / "." / ".." / tmp_path.name / "out"):
            with refuses(f"^{same} is being written by another process"), locked(same):
                pass
        with locked(tmp_path / "another"):
            pass
        other.communicate()
    assert other.returncode == 0
    with locked(output):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("lock")]


def test_trap_a_killed_holder_blocks_nobody(tmp_path, output):
    with hold(output) as other:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert other.returncode == -signal.SIGKILL
    assert [path for path in tmp_path.rglob("*") if path.name.endswith("lock")]  # it was killed
    with locked(output):
        pass
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("lock")]


def test_a_lock_within_one_process(tmp_path, refuses):
    with locked(tmp_path):
        with refuses("is being written"), locked(tmp_path):
            pass
        with refuses("is being written"), locked(tmp_path):
            pass  # a refusal has given nothing back
    with pytest.raises(KeyboardInterrupt), locked(tmp_path):
        raise KeyboardInterrupt
    held = locked(tmp_path)
    held.__enter__()
    thread = threading.Thread(target=held.__exit__, args=(None, None, None))
    thread.start()
    thread.join()
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())


WRITER = """
import os, sys
from pathlib import Path
from ddim.base.files import replacing
for path in sys.argv[2:]:
    context = replacing(Path(path))
    context.__enter__().write_bytes(b"half")
    globals()[path] = context  # or it ends
print("writing", flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), 9)
sys.stdin.read()
"""


def writing(how: str, *paths: Path) -> subprocess.Popen[str]:
    """Another process that is in the middle of writing files, or was killed there."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, how, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_trap_what_a_kill_leaves_is_swept_by_the_next_writer(tmp_path):
    """Of a file those beside it, and its record's; of a folder all that belong to it."""
    folder = tmp_path / "run"
    inside = [folder / "a.png", folder / "model" / "unet" / "w.safetensors", folder / "run.toml"]
    inside[0].parent.mkdir()
    (folder / ".reference.safetensors.lock").write_bytes(b"")
    outside = [tmp_path / "b.npz", tmp_path / "b.npz.run.toml"]
    with writing("killed", *inside, *outside) as other:
        other.communicate()
    assert len(everything(tmp_path)) == 6
    mine = [".hidden.png", ".a.png.bak", ".b.npz.x.npz", ".c.npz.abcd1234.npz", "b.npz.old"]
    for name in mine:
        (tmp_path / name).write_bytes(b"mine")
    with locked(tmp_path / "b.npz"):
        assert len(everything(tmp_path)) == 4 + len(mine) + 1
    with locked(folder):
        pass
    assert everything(tmp_path) == sorted(mine)


def test_trap_what_another_process_is_writing_stays(tmp_path):
    paths = tmp_path / "run" / "a.png", tmp_path / "b.npz"
    with writing("on", *paths) as other:
        before = everything(tmp_path)
        assert len(before) == 2
        with locked(tmp_path / "run" / "c.npz"), locked(tmp_path / "b.npz"):
            now = everything(tmp_path)
            assert len(now) == 4
            with locked(tmp_path / "run"):
                assert set(now) < set(everything(tmp_path))
        assert everything(tmp_path) == before
        with replacing(paths[0]) as temporary, locked(tmp_path / "run"):  # nor what this one is
            assert temporary.exists()
        other.kill()
        other.communicate()


def test_a_folder_that_stays_empty_is_not_left(tmp_path):
    path = tmp_path / "new" / "er"
    with locked(path, folder=True):
        assert [p.name for p in path.iterdir()] == [".lock"]
    with locked(path / "x.png"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(path, folder=True):
        (path / "x.png").write_bytes(b"")
    assert everything(tmp_path) == ["new/er/x.png"]


def test_a_file_system_without_locks_is_said_and_written_to(tmp_path, monkeypatch):
    def flock(handle: int, how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    path = tmp_path / "a.png"
    with pytest.warns(UserWarning, match="a.png is on a file system without locks"), locked(path):
        write_bytes(path, b"new")
    assert everything(tmp_path) == ["a.png"]


COUNTER = """
import sys
from pathlib import Path
from ddim.base.errors import InputError
from ddim.base.files import locked
path = Path(sys.argv[1])
done = 0
while done < 100:
    try:
        with locked(path):
            path.write_text(str(int(path.read_text()) + 1))
            done += 1
    except InputError:
        pass
"""


def test_trap_removing_the_lock_file_lets_no_second_writer_in(tmp_path):
    """Whoever opened it before it went must not take it for the lock."""
    path = tmp_path / "count"
    path.write_text("0")
    command = [sys.executable, "-c", COUNTER, str(path)]
    writers = [subprocess.Popen(command) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert path.read_text() == "300"
