from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from asking import events
from ddim.base.errors import RunError
from ddim.web import channel, stream
from ddim.web.channel import Channel, Stopped
from ddim.web.stream import EventStream


def run(main):
    """What a coroutine returns, on a thread: this one may have the loop of a browser."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(main())).result()


def taken(channel):
    found = b""
    while message := channel.take():
        found += message
    return events(found.decode())


def test_of_a_lane_s_frames_the_newest_is_kept_and_results_all():
    made = Channel(lambda: None)
    made.send("start", {})
    for step in range(100):
        made.frame("0", "frame", {"step": step})
        made.frame("1", "frame", {"step": -step})
    made.drop("1")
    made.send("lane", {"lane": 1})
    made.close()
    assert taken(made) == [("start", {}), ("frame", {"step": 99}), ("lane", {"lane": 1})]
    assert made.take() is None


def test_a_reader_that_has_gone_stops_the_job():
    made = Channel(lambda: None)
    made.check()
    made.send("start", {})
    made.stop()
    assert made.take() == b""
    with pytest.raises(Stopped):
        made.check()


def test_results_that_nobody_reads_have_an_end(monkeypatch):
    monkeypatch.setattr(channel, "MOST", 1000)
    made = Channel(lambda: None)
    for _ in range(50):
        made.frame("0", "frame", {"pixels": "A" * 500})
    with pytest.raises(RunError, match="reads too slowly"):
        for _ in range(3):
            made.send("frame", {"pixels": "A" * 500})


async def answered(stream, send, gone=None):
    """A stream's answer to a client, who leaves when ``gone`` is set."""

    async def receive():
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    await stream({"type": "http"}, receive, send)


def test_a_silent_stream_beats(monkeypatch):
    monkeypatch.setattr(stream, "HEARTBEAT", 0.01)
    sent = []

    async def main():
        made = EventStream(lambda channel: channel.stop())

        async def send(message):
            sent.append(message)
            if message.get("body") == b": \n\n":
                made.channel.send("done", {"value": 1})
                made.channel.close()

        await answered(made, send)

    run(main)
    assert sent[0]["status"] == 200 and sent[-1] == {"type": "http.response.body", "body": b""}
    assert ("done", {"value": 1}) in events(b"".join(m.get("body", b"") for m in sent).decode())


def test_a_client_who_leaves_stops_the_job():
    async def main():
        ended = []
        made, gone = EventStream(ended.append), asyncio.Event()

        async def send(message):
            gone.set()

        await asyncio.wait_for(answered(made, send, gone), 5)
        return ended == [made.channel]

    assert run(main)


def test_a_client_who_never_reads_is_given_up_and_costs_no_memory(monkeypatch):
    monkeypatch.setattr(stream, "PATIENCE", 0.05)

    async def main():
        ended = []
        made = EventStream(ended.append)
        for step in range(1000):
            made.channel.frame("0", "frame", {"step": step, "pixels": "A" * 10_000})
        size = made.channel._bytes

        async def send(message):
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        await asyncio.wait_for(answered(made, send), 5)
        return ended == [made.channel] and size < 11_000

    assert run(main)


def test_large_events_are_sent_in_pieces():
    async def main():
        made, sizes = EventStream(lambda channel: None), []
        made.channel.send("done", {"pixels": "A" * 300_000})
        made.channel.close()
        text = b""

        async def send(message):
            nonlocal text
            text += message.get("body", b"")
            sizes.append(len(message.get("body", b"")))

        await answered(made, send)
        return text, sizes

    text, sizes = run(main)
    assert max(sizes) <= stream.PIECE and json.loads(text.split(b"data: ")[1])
