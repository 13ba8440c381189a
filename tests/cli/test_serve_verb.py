import contextlib
import json

import pytest

from ddim.cli import serve
from ddim.cli.serve import ServeOptions
from ddim.web import server
from ddim.web.guard import Address
from ddim.web.server import bind, open_browser


def test_refusals(fails, tmp_path, tiny):
    fails(2, "did you mean 'mnist'", "serve", "--model", "mnits")
    fails(2, "has no results.json", "serve", "--evaluation", tmp_path)
    fails(2, "--token is of 8 to 200", "serve", "--token", "a b c d e f g")
    fails(2, "--port is from 0 to 65535", "serve", "--port", 70000)
    fails(2, "unknown option --prot", "serve", "--prot", 1)
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        fails(2, "is taken: --port", "serve", "--port", taken.getsockname()[1])


def test_a_new_token_is_made_where_others_may_ask():
    assert ServeOptions().secret(host_is_loopback=True) is None
    made = {ServeOptions().secret(host_is_loopback=False) for _ in range(2)}
    assert len(made) == 2 and all(one and len(one) == 32 for one in made)
    assert ServeOptions(token="correct-horse").secret(host_is_loopback=True) == "correct-horse"


@pytest.fixture
def served(monkeypatch):
    """What would have been served; nothing is."""
    calls = []

    def fake(app, listener, jobs, begun):
        with contextlib.closing(listener):
            calls.append(listener.getsockname())

    monkeypatch.setattr(server, "serve", fake)
    return calls


def test_models_are_those_given_or_the_shipped_ones(ddim, served, tiny):
    assert ServeOptions().sources() == ["mnist", "mnist-cond"]
    assert ServeOptions(model=(f"{tiny},mnist",)).sources() == [str(tiny), "mnist"]
    assert ddim("serve", "--model", tiny, "--port", 0).status == 0
    assert served[0][0] == "127.0.0.1"


def test_the_address_is_printed_and_opened_where_there_are_windows(capsys, monkeypatch):
    opened = []
    monkeypatch.setattr(server.webbrowser, "open", opened.append)
    monkeypatch.setattr(server.threading, "Thread", Now)
    monkeypatch.setattr(server.sys, "platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    address = Address("127.0.0.1", 7860, "correct-horse")
    assert not open_browser(address) and opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    serve._tell(ServeOptions(no_browser=True), address, ["tiny"])
    assert opened == []
    serve._tell(ServeOptions(), address, ["tiny"])
    assert opened == ["http://127.0.0.1:7860/?token=correct-horse"]
    lines = capsys.readouterr().out
    assert lines == "http://127.0.0.1:7860/?token=correct-horse (Ctrl-C ends it)\n" * 2
    serve._tell(ServeOptions(no_browser=True, json=True), address, ["tiny"])
    assert json.loads(capsys.readouterr().out) == {"address": address.url, "models": ["tiny"]}


class Now:
    """A thread that runs at once."""

    def __init__(self, target, daemon):
        self.start = target
