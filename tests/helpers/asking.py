"""The page's server without a socket: models, a queue, and a client that asks."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2 as httpx
import torch
from starlette.testclient import TestClient
from torch import Tensor

from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.noise.schedule import Schedule
from ddim.web.app import App, make_app
from ddim.web.guard import Address
from ddim.web.jobs import Jobs
from ddim.web.models import Models
from ddim.web.pages import read_page
from ddim.web.ways import Origin
from tiny import tiny_unet

ADDRESS = Address("127.0.0.1", 7860)
Events = list[tuple[str, dict[str, Any]]]


def save_model(folder: Path, classes: int | None = None, channels: int = 1, **changes: Any) -> Path:
    """An untrained model of 8 x 8 pixels with T = 20, in a folder."""
    net = tiny_unet(classes, in_channels=channels, out_channels=channels)
    schedule = Schedule.linear(20, 0.01, 0.4)
    shape = (channels, 8, 8)
    null = {"null_label": classes} if classes else {}
    Model(
        net, schedule, Target.EPS, shape, classes=classes, name=folder.name, **null, **changes
    ).save(folder)
    return folder


def open_model(source: str) -> tuple[Model, Origin]:
    """A model of a folder, and its origin."""
    return load(source), Origin(source, "cpu")


class Page:
    """A client of the page.

    Attributes:
        client: of httpx's kind.
        jobs: the queue.
        app: what is asked.
    """

    def __init__(self, client: TestClient, jobs: Jobs, app: App) -> None:
        self.client, self.jobs, self.app = client, jobs, app

    def get(self, path: str, **named: Any) -> httpx.Response:
        """The answer to a GET."""
        return self.client.get(path, **named)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """The answer to a POST of JSON, all of it."""
        kind = {"content-type": "application/json"}
        return self.client.post(path, content=json.dumps(body), headers={**kind, **headers})

    def job(self, path: str, body: object, **headers: str) -> Events:
        """The events of a job."""
        answer = self.post(f"/api/{path}", body, **headers)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream"
        return events(answer.text)

    def done(self, path: str, body: object) -> dict[str, Any]:
        """What the last event of a job says, which must be that it is done."""
        name, data = self.job(path, body)[-1]
        assert name == "done", data
        return data

    def wait(self, model: str) -> None:
        """Until a model is ready."""
        for _ in range(600):
            state = {m["name"]: m for m in self.get("/api/state").json()["models"]}[model]
            if state["phase"] == "idle":
                self.get("/api/model", params={"model": model})
            elif state["phase"] != "loading":
                return
            time.sleep(0.02)
        raise AssertionError(f"{model} is not ready")


@contextlib.contextmanager
def paged(*sources: Path | str, evaluation: dict[str, Any] | None = None) -> Iterator[Page]:
    """A page that serves some models, the first of which is loaded."""
    jobs = Jobs()
    models = Models([str(source) for source in sources], open_model, jobs)
    app = App(models, jobs, read_page(), evaluation)
    with TestClient(make_app(app, ADDRESS), base_url="http://127.0.0.1:7860") as client:
        jobs.start()
        models.load_first()
        page = Page(client, jobs, app)
        page.wait(models.state()[0]["name"])
        try:
            yield page
        finally:
            assert jobs.close(10)


def events(text: str) -> Events:
    """The events of a stream."""
    found = []
    for block in text.split("\n\n"):
        if not block or block.startswith(":"):
            continue
        name, data = block.split("\n")
        assert name.startswith("event: ") and data.startswith("data: ")
        found.append((name[7:], json.loads(data[6:])))
    return found


def images(said: Mapping[str, Any]) -> Tensor:
    """Images of an event, uint8 of shape (N, C, H, W)."""
    channels, height, width = said["shape"]
    content = bytearray(base64.b64decode(said["pixels"]))
    pixels = torch.frombuffer(content, dtype=torch.uint8)
    return pixels.view(said["n"], height, width, channels).permute(0, 3, 1, 2)


def sent(pixels: Tensor) -> str:
    """Pixels (C, H, W) in base64, as the page sends them."""
    return base64.b64encode(pixels.permute(1, 2, 0).contiguous().numpy().tobytes()).decode()
