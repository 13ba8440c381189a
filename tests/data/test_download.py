from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim.base.errors import RunError
from ddim.data import download
from ddim.data.download import fetch

PLAIN = b"some data" * 1000
GOOD = gzip.compress(PLAIN)
SUM = hashlib.sha256(PLAIN).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    agents: list[str | None]

    def do_GET(self) -> None:
        self.agents.append(self.headers["User-Agent"])
        content = {"/good/f": GOOD, "/repacked/f": gzip.compress(PLAIN, 1), "/cut/f": GOOD}.get(
            self.path, b"<html>log in</html>"
        )
        self.send_response(404 if self.path == "/missing/f" else 200)
        if self.path != "/unsized/f":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.path == "/slow/f":
            self.server.released.wait(5)  # pyright: ignore[reportAttributeAccessIssue]
        self.wfile.write(content[:20] if self.path == "/cut/f" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.agents = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.released = threading.Event()  # pyright: ignore[reportAttributeAccessIssue]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def closed() -> str:
    """An address where nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_good(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dest = tmp_path / "new" / "folder" / "f"
    fetch([f"{server}/good/f"], dest, SUM, of_uncompressed=True)
    assert dest.read_bytes() == GOOD
    assert list(dest.parent.iterdir()) == [dest]
    assert Handler.agents == ["ddim/0.1"]
    # No progress bar where stderr is no terminal.
    assert capsys.readouterr() == ("", "")


def test_checksum_of_the_content_accepts_another_compression(server: str, tmp_path: Path):
    fetch([f"{server}/repacked/f"], tmp_path / "f", SUM, of_uncompressed=True)
    assert gzip.decompress((tmp_path / "f").read_bytes()) == PLAIN


def test_checksum_of_the_file(server: str, tmp_path: Path):
    fetch(
        [f"{server}/good/f"],
        tmp_path / "f",
        hashlib.sha256(GOOD).hexdigest(),
        of_uncompressed=False,
    )
    assert (tmp_path / "f").read_bytes() == GOOD


@pytest.mark.parametrize("bad", ["html", "unsized", "missing", "cut"])
def test_next_mirror_after_a_bad_one(server: str, tmp_path: Path, bad: str):
    urls = [f"{server}/{bad}/f", f"{server}/good/f", f"{server}/not-needed/f"]
    fetch(urls, tmp_path / "f", SUM, of_uncompressed=True)
    assert (tmp_path / "f").read_bytes() == GOOD
    assert list(tmp_path.iterdir()) == [tmp_path / "f"]
    assert len(Handler.agents) == 2


def test_next_mirror_after_nobody_answers(server: str, closed: str, tmp_path: Path):
    fetch([f"{closed}/f", f"{server}/good/f"], tmp_path / "f", SUM, of_uncompressed=True)
    assert (tmp_path / "f").read_bytes() == GOOD


def test_all_fail_in_one_line_that_says_why(server: str, closed: str, tmp_path: Path):
    urls = [f"{server}/{kind}/f" for kind in ("html", "missing", "cut")] + [f"{closed}/f"]
    dest = tmp_path / "f"
    with pytest.raises(RunError) as raised:
        fetch(urls, dest, SUM, of_uncompressed=True)
    line = str(raised.value)
    assert "\n" not in line
    assert f"{urls[0]}: not a whole gzip file" in line
    assert f"{urls[1]}: HTTP 404" in line
    assert f"{urls[2]}: " in line
    assert "20" in line.split(urls[2])[1]  # bytes that came
    assert "refused" in line.split(urls[3])[1]
    assert f"put it at {dest}" in line
    assert list(tmp_path.iterdir()) == []


def test_wrong_checksum(server: str, tmp_path: Path):
    with pytest.raises(RunError, match=rf"sha256 {SUM[:12]}\.\. where 000000000000\.\. is"):
        fetch([f"{server}/good/f"], tmp_path / "f", "0" * 64, of_uncompressed=True)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_there(server: str, tmp_path: Path):
    (tmp_path / "f").write_text("old")
    with pytest.raises(RunError):
        fetch([f"{server}/cut/f"], tmp_path / "f", SUM, of_uncompressed=True)
    assert (tmp_path / "f").read_text() == "old"


def test_timeout(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    with pytest.raises(RunError, match="timed out"):
        fetch([f"{server}/slow/f"], tmp_path / "f", SUM, of_uncompressed=True)
    assert list(tmp_path.iterdir()) == []


def test_interruption_leaves_nothing(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "mismatch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch([f"{server}/good/f"], tmp_path / "f", SUM, of_uncompressed=True)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot make the folder"):
        fetch(["http://127.0.0.1:9/f"], tmp_path / "file/sub/f", SUM, of_uncompressed=True)
