"""What is answered to which request. No torch here: it is still being imported when the page is
asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ddim import __version__
from ddim.base.errors import InputError
from ddim.base.records import parse_json, record
from ddim.web.asked import (
    LIMITS,
    DecodeAsked,
    DrawLatentsAsked,
    EncodeAsked,
    RaceAsked,
    StepsAsked,
    TradeoffAsked,
)
from ddim.web.guard import Address, Guard, refusal
from ddim.web.jobs import Job, Jobs
from ddim.web.kept import Kept
from ddim.web.models import Models
from ddim.web.refused import Refused
from ddim.web.stream import EventStream

__all__ = ["make_app"]

Asked = TypeVar("Asked")
BODY = 64_000
"""Bytes of a request that uploads nothing."""
UPLOAD = 2_000_000
"""Bytes of one that does."""
PATIENCE = 20.0
"""Seconds in which the body of a request must have come."""
_PAGE = re.compile(r"[0-9a-f]{32}")


@dataclasses.dataclass(frozen=True)
class App:
    """What the answers are made from.

    Attributes:
        models: that are served.
        jobs: the queue.
        page: the files of the page, by path.
        evaluation: what ``ddim evaluate`` has written, if its folder was given.
        kept: the latents that the page may ask for again.
        preparing: held while a request is checked against a model, which takes a moment.
    """

    models: Models
    jobs: Jobs
    page: dict[str, tuple[bytes, str]]
    evaluation: dict[str, Any] | None = None
    kept: Kept = dataclasses.field(default_factory=Kept)
    preparing: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    async def file(self, request: Request) -> Response:
        """A file of the page."""
        content, kind = self.page[request.url.path]
        return Response(content, media_type=kind)

    async def state(self, request: Request) -> Response:
        """How far the models are, and how long the queue."""
        return JSONResponse(
            {
                "version": __version__,
                "models": self.models.state(),
                "limits": LIMITS,
                "queue": {"waiting": self.jobs.waiting, "running": self.jobs.running},
                "evaluation": self.evaluation is not None,
            }
        )

    async def model(self, request: Request) -> Response:
        """A model's schedule, and what can be done with it."""
        from ddim.web.described import describe

        model, _ = self.models.ready(request.query_params.get("model", ""))
        async with self.preparing:
            return JSONResponse(await asyncio.to_thread(describe, model))

    async def race(self, request: Request) -> EventStream:
        """Samplers side by side."""
        asked = await _asked(request, RaceAsked)
        model, origin = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.race import prepare_race

            return prepare_race(model, origin, asked)

        return await self._stream(request, prepare)

    async def steps(self, request: Request) -> EventStream:
        """One image, step by step."""
        asked = await _asked(request, StepsAsked)
        model, origin = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.steps import prepare_steps

            return prepare_steps(model, origin, asked)

        return await self._stream(request, prepare)

    async def encode(self, request: Request) -> EventStream:
        """An image to a latent and back."""
        asked = await _asked(request, EncodeAsked, UPLOAD)
        model, origin = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.coding import prepare_encoding

            return prepare_encoding(model, origin, asked, self.kept)

        return await self._stream(request, prepare)

    async def draw_latents(self, request: Request) -> EventStream:
        """The latent of an image of a seed."""
        asked = await _asked(request, DrawLatentsAsked)
        model, origin = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.coding import prepare_drawing

            return prepare_drawing(model, origin, asked, self.kept)

        return await self._stream(request, prepare)

    async def decode(self, request: Request) -> EventStream:
        """Latents, or what lies between them, to images."""
        asked = await _asked(request, DecodeAsked)
        model, origin = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.decoding import prepare_decoding

            return prepare_decoding(model, origin, asked, self.kept)

        return await self._stream(request, prepare)

    async def tradeoff(self, request: Request) -> Response:
        """The figures that there are of a model."""
        model, origin = self.models.ready(request.query_params.get("model", ""))

        def read() -> dict[str, Any]:
            from ddim.web.tradeoff import tradeoff

            return tradeoff(model, origin, self.evaluation)

        async with self.preparing:
            return JSONResponse(await asyncio.to_thread(read))

    async def measure(self, request: Request) -> EventStream:
        """Solver error, measured now."""
        asked = await _asked(request, TradeoffAsked)
        model, _ = self.models.ready(asked.model)

        def prepare() -> Job:
            from ddim.web.tradeoff import prepare_tradeoff

            return prepare_tradeoff(model, asked)

        return await self._stream(request, prepare)

    async def _stream(self, request: Request, prepare: Callable[[], Job]) -> EventStream:
        """Check what is asked for, and let it wait for its turn."""
        client = _client(request)
        self.jobs.check(client)
        async with self.preparing:
            job = await asyncio.to_thread(prepare)
        stream = EventStream(self.jobs.drop)
        self.jobs.submit(client, job, stream.channel)
        return stream


def make_app(app: App, address: Address) -> ASGIApp:
    """The whole of it, guarded.

    Args:
        app: what the answers are made from.
        address: where it is.
    """
    get, post = (
        functools.partial(Route, methods=["GET"]),
        functools.partial(Route, methods=["POST"]),
    )
    routes = [get(path, _answer(app.file)) for path in app.page]
    routes += [
        get("/api/state", _answer(app.state)),
        get("/api/model", _answer(app.model)),
        post("/api/race", _answer(app.race)),
        post("/api/steps", _answer(app.steps)),
        post("/api/encode", _answer(app.encode)),
        post("/api/draw-latents", _answer(app.draw_latents)),
        post("/api/decode", _answer(app.decode)),
        get("/api/tradeoff", _answer(app.tradeoff)),
        post("/api/tradeoff", _answer(app.measure)),
    ]
    handlers = {HTTPException: _not_found}
    made = Starlette(routes=routes, exception_handlers=handlers)  # pyright: ignore[reportArgumentType]
    made.router.redirect_slashes = False
    return Guard(made, address)


def _answer(
    handler: Callable[[Request], Awaitable[ASGIApp]],
) -> Callable[[Request], Awaitable[ASGIApp]]:
    """A handler whose errors are answers."""

    async def answer(request: Request) -> ASGIApp:
        try:
            return await handler(request)
        except Refused as error:
            return refusal(error)
        except InputError as error:
            return refusal(Refused("bad-request", str(error)))
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception as error:
            return refusal(Refused("failed", f"{type(error).__name__}: {error}"[:1000]))

    return answer


async def _not_found(request: Request, error: HTTPException) -> Response:
    if error.status_code == 405:
        text = f"{request.url.path[:100]} takes another method than {request.method[:20]}"
        body = Refused("bad-request", text).body()
        return JSONResponse(body, 405, error.headers)
    return refusal(Refused("not-found", f"there is no {request.url.path[:100]}"))


async def _asked(request: Request, kind: type[Asked], most: int = BODY) -> Asked:
    """What a request asks for.

    Raises:
        Refused: a body of another kind, too long, or too slow.
        InputError: not what is asked for here.
    """
    kinds = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kinds != "application/json":
        raise Refused("unsupported", "what is asked for is application/json")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > most:
        raise Refused("too-large", f"a request has at most {most:,} bytes")
    try:
        body = await asyncio.wait_for(_body(request, most), PATIENCE)
        text = body.decode("utf-8")
    except TimeoutError:
        raise Refused("bad-request", f"the request did not come in {PATIENCE:g} seconds") from None
    except UnicodeDecodeError:
        raise Refused("bad-request", "the request is not valid JSON: it is not UTF-8") from None
    return record(kind, parse_json(text, "the request"))


async def _body(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refused("too-large", f"a request has at most {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _client(request: Request) -> str:
    """Whose turn a job is: of a page, at an address."""
    page = request.headers.get("x-page", "")
    if page and not _PAGE.fullmatch(page):
        raise Refused("bad-request", "X-Page is 32 hexadecimal digits")
    return f"{request.client.host if request.client else ''} {page}"
