"""Bars on a terminal, in a file and not at all."""

import io
import subprocess
import sys
import time

import pytest

from ddim.base.progress import bar


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_moves_on_a_terminal_and_is_short_in_a_file(monkeypatch, terminal):
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in bar(range(60), 60, "drawing", quiet=False):
        time.sleep(0.01)
    drawn = stream.getvalue()
    assert "60/60" in drawn
    assert (drawn.count("\r") > 3) == terminal
    assert drawn.endswith("\n")


def test_a_quiet_bar(capsys):
    assert list(bar([1, 2], 2, "drawing", quiet=True)) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_tqdm_is_imported_when_a_bar_is_drawn():
    script = "import sys, ddim.base.progress; sys.exit('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
