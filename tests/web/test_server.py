from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from asking import events, images, open_model
from ddim.data.pixels import to_pixels
from ddim.model.drawing import sample
from ddim.model.opening import load
from ddim.web import server
from ddim.web.app import App, make_app
from ddim.web.guard import Address
from ddim.web.jobs import Jobs
from ddim.web.models import Models
from ddim.web.pages import read_page
from ddim.web.server import Server, bind


@contextlib.contextmanager
def serving(*sources) -> Iterator[int]:
    """A server on a port of its own, in a thread; the first model is loaded."""
    jobs = Jobs()
    models = Models([str(source) for source in sources], open_model, jobs)
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    app = make_app(App(models, jobs, read_page()), Address("127.0.0.1", port))
    made = Server(app, jobs, models.load_first)
    thread = threading.Thread(target=made.run, args=([listener],))
    thread.start()
    try:
        while models.state()[0]["phase"] in ("idle", "loading"):
            time.sleep(0.01)
        yield port
    finally:
        begun = time.monotonic()
        made.end()
        thread.join(10)
        assert not thread.is_alive() and time.monotonic() - begun < 5
        assert jobs.close(5)


def test_answers_do_not_wait_for_what_they_send_to_be_acknowledged(port):
    # asyncio sets TCP_NODELAY for sockets that name their protocol.
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
    times = []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as one:
        for _ in range(9):
            begun = time.perf_counter()
            one.request("GET", "/api/state")
            one.getresponse().read()
            times.append(time.perf_counter() - begun)
    assert sorted(times)[4] < 0.035  # 40 ms is what the system waits


@pytest.fixture(scope="module")
def port(folders):
    with serving(folders["tiny"]) as port:
        yield port


def asked(port, path, body, page="0" * 32):
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"content-type": "application/json", "x-page": page}
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def sent(port, content, wait=True):
    """A connection that has sent bytes and, perhaps, waits for the first of the answer."""
    made = socket.create_connection(("127.0.0.1", port), timeout=30)
    made.sendall(content)
    if wait:
        made.recv(100)
    return made


def raw(port, path, body):
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    return head.encode() + f"content-length: {len(content)}\r\n\r\n".encode() + content


LONG = {"model": "tiny", "images": 16, "lanes": ["ddpm:steps=20"] * 4}


def test_thirty_two_clients_at_once_get_their_own_images_or_are_told_to_wait(port, folders):
    model, lanes = load(folders["tiny"]), ["ddim:steps=2", "dpmpp:steps=3"]
    busy = []

    def client(number):
        body = {"model": "tiny", "seed": number, "images": 2, "lanes": lanes}
        for attempt in range(400):
            status, text = asked(port, "/api/race", body, f"{number:032x}")
            if status == 200:
                return number, {d["lane"]: d for n, d in events(text) if n == "lane"}
            assert (status, json.loads(text)["error"]["code"]) == (503, "busy")
            busy.append(number)
            time.sleep(random.Random(number * 1000 + attempt).uniform(0.02, 0.2))
        raise AssertionError(f"client {number} never got its turn")

    with ThreadPoolExecutor(32) as pool:
        found = dict(pool.map(client, range(32)))
    assert len(found) == 32
    for number, said in found.items():
        for lane, text in enumerate(lanes):
            exact = to_pixels(sample(model, 2, text, seed=number))
            assert torch.equal(images(said[lane]["images"]), exact), number
    assert busy, "not all of them fit into the queue"


def test_clients_who_never_read_do_not_hold_the_others(port):
    held = [
        sent(port, raw(port, "/api/race", {**LONG, "seed": seed}), wait=False) for seed in range(4)
    ]
    try:
        body = {"model": "tiny", "images": 1, "lanes": ["ddim:steps=1"]}
        for _ in range(200):
            status, text = asked(port, "/api/race", body, "a" * 32)
            if status == 200:
                break
            time.sleep(0.1)
        assert events(text)[-1][0] == "done"
    finally:
        for each in held:
            each.close()


def test_a_client_who_leaves_stops_the_job(port):
    left = sent(port, raw(port, "/api/race", LONG))
    left.close()
    begun = time.monotonic()
    while state(port)["queue"]["running"]:
        assert time.monotonic() - begun < 5
        time.sleep(0.01)


def state(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/api/state")
        return json.loads(connection.getresponse().read())


def test_a_hundred_megabytes_are_refused_at_once(port):
    """By what the request says of itself; and where it says nothing, by what has come."""
    head = f"POST /api/encode HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
    head += "content-type: application/json\r\n"
    made = sent(port, f"{head}content-length: 100000000\r\n\r\n{{".encode(), wait=False)
    with contextlib.closing(made):
        assert b" 413 " in made.recv(4000)
    made = sent(port, f"{head}transfer-encoding: chunked\r\n\r\n".encode(), wait=False)
    with contextlib.closing(made):
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(40):
            made.sendall(chunk)
        assert b" 413 " in made.recv(4000)


def test_streams_end_with_the_server(folders):
    with serving(folders["tiny"]) as port:
        streams = [
            sent(port, raw(port, "/api/race", {**LONG, "seed": i}), i == 0) for i in range(3)
        ]
    for each in streams:
        with contextlib.closing(each), contextlib.suppress(ConnectionError):
            while each.recv(65536):
                pass


def test_connections_are_bounded(port, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS", 3)
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    time.sleep(0.2)
    ended = 0
    for each in held:
        each.settimeout(0.05)
        with contextlib.closing(each):
            try:
                ended += each.recv(1) == b""
            except ConnectionError:
                ended += 1
            except TimeoutError:
                pass
    assert ended >= 5


def test_a_port_that_is_taken(refuses):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with refuses(rf"port {port} is taken: --port \d+ is free"):
            bind("127.0.0.1", port)


def test_without_a_port_the_next_that_is_free_is_taken(monkeypatch, refuses):
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "PORT", port)
        with contextlib.closing(bind("127.0.0.1", None)) as other:
            assert port < other.getsockname()[1] < port + server.TRIED
        monkeypatch.setattr(server, "TRIED", 1)
        with refuses("are taken: give another by --port"):
            bind("127.0.0.1", None)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_a_host_of_somewhere_else(refuses, host):
    with refuses("--host"):
        bind(host, 0)


@pytest.mark.parametrize(
    ("stop", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_the_command_ends_at_once_with_open_streams(folders, stop, status, word):
    words = ["-m", "ddim", "serve", "--model", str(folders["tiny"]), "--port", "0", "--no-browser"]
    with subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            address = process.stdout.readline()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n", address)
            port = int(address.split(":")[2].partition("/")[0])
            assert state(port)["models"][0]["phase"] in ("idle", "loading"), (
                "torch is not there yet"
            )
            deadline = time.monotonic() + 60
            while state(port)["models"][0]["phase"] != "ready":
                assert time.monotonic() < deadline
                time.sleep(0.05)
            held = sent(port, raw(port, "/api/race", LONG))
            begun = time.monotonic()
            process.send_signal(stop)
            assert process.wait(20) == status
            assert time.monotonic() - begun < 5
            assert process.stderr.read() == f"ddim serve: {word}\n"
            held.close()
        finally:
            process.kill()  # leaving the block waits for it
