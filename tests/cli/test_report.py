"""What the verbs share in talking to people."""

import io
import sys
import time

import pytest

from ddim.cli.report import bar


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
