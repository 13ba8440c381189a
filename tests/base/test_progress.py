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


NOTEBOOK = """
import sys, types, warnings
warnings.simplefilter("error")
shell = types.SimpleNamespace(config={"IPKernelApp": {}})
ipython = types.ModuleType("IPython")
ipython.get_ipython = lambda: shell
display = types.ModuleType("IPython.display")
display.display = lambda thing: print("shown:", type(thing).__name__)
kernel = types.ModuleType("ipykernel.zmqshell")
sys.modules |= {"IPython": ipython, "IPython.display": display, "ipykernel.zmqshell": kernel}
"""
"""What tqdm, the older and the newer, takes for a notebook's kernel."""

WIDGETS = """
class Widget:
    def __init__(self, *children, **facts):
        self.__dict__.update({"children": children[0] if children else ()} | facts)
        self.style = self.layout = types.SimpleNamespace()
    def close(self): pass
widgets = types.ModuleType("ipywidgets")
widgets.__version__ = "8.0.0"
for name in ("IntProgress", "FloatProgress", "HBox", "HTML"):
    setattr(widgets, name, type(name, (Widget,), {"value": 0, "bar_style": ""}))
sys.modules["ipywidgets"] = widgets
"""

DRAW = """
from ddim.base.progress import bar
assert list(bar([1, 2], 2, "drawing", quiet=False)) == [1, 2]
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )


def test_a_notebook_shows_a_widget():
    done = run(NOTEBOOK + WIDGETS + DRAW)
    assert (done.returncode, done.stderr) == (0, "")
    assert "shown:" in done.stdout


def test_a_notebook_without_widgets_shows_text_and_no_warning():
    done = run(NOTEBOOK + 'sys.modules["ipywidgets"] = None\n' + DRAW)
    assert done.returncode == 0, done.stderr
    assert "2/2" in done.stderr
    assert "Warning" not in done.stderr
    assert "shown:" not in done.stdout


def test_a_terminal_never_imports_the_notebooks_bar():
    done = run(
        DRAW + "import sys\nsys.exit('tqdm.auto' in sys.modules or 'asyncio' in sys.modules)"
    )
    assert done.returncode == 0, done.stderr
