"""What stands before everything: who may ask, how much, and what every answer says to browsers."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddim.web.refused import STATUS, Refused

__all__ = ["HEADERS", "Address", "Guard", "refusal"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; manifest-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
"""What every answer says."""
MOST = 64
"""Requests that may be under way."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where the page is.

    Attributes:
        host: as it was given.
        port: that it listens to.
        token: what a browser must have been given; None where anybody on this machine may ask.
    """

    host: str
    port: int
    token: str | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        """What a browser is to open."""
        host = self.host if self.host not in ("0.0.0.0", "::", "") else socket.gethostname()
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def cookie(self) -> str:
        """The cookie that has the token; browsers do not tell ports apart."""
        return f"ddim-{self.port}"

    def admits(self, host: str) -> bool:
        """Whether a Host header is one that this address is reached by."""
        name, port = _split(host)
        if port != (self.port if self.port != 80 or port is not None else None):
            return False
        if name in LOOPBACK or name == self.host.lower():
            return True
        # Served on all addresses: a name that somebody's DNS has may lead here, a number cannot.
        return self.host in ("0.0.0.0", "::", "") and (
            _is_number(name) or name == socket.gethostname().lower()
        )


def is_loopback(host: str) -> bool:
    """Whether a host to listen on is reached from this machine alone."""
    if host == "localhost":
        return True
    return _is_number(host) and ipaddress.ip_address(host).is_loopback


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _split(host: str) -> tuple[str, int | None]:
    """The name and the port of a Host header."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or port.endswith("]"):
        name, port = host.lower(), ""
    number = int(port) if port.isascii() and port.isdigit() and len(port) < 6 else None
    return name.removeprefix("[").removesuffix("]"), number


def refusal(error: Refused) -> JSONResponse:
    """The answer to a request that is refused."""
    headers = {"retry-after": "1"} if STATUS[error.code] == 503 else {}
    return JSONResponse(error.body(), STATUS[error.code], headers)


class Guard:
    """Refuses requests of others, and gives every answer its headers.

    Args:
        app: what is guarded.
        address: where it is.
    """

    def __init__(self, app: ASGIApp, address: Address) -> None:
        self._app, self._address, self._count = app, address, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *own]}
            await send(message)

        self._count += 1
        try:
            answer = self._checked(scope)
            await (answer or self._app)(scope, receive, tell)
        finally:
            self._count -= 1

    def _checked(self, scope: Scope) -> Response | None:
        """An answer that needs nobody else; None for a request that is to go on."""
        try:
            return self._check(scope)
        except Refused as error:
            return refusal(error)

    def _check(self, scope: Scope) -> Response | None:
        if self._count > MOST:
            raise Refused("busy", f"{MOST} requests are under way: try again in a moment")
        hosts, origins = _all(scope, b"host"), _all(scope, b"origin")
        if len(hosts) != 1 or not self._address.admits(hosts[0]):
            raise Refused("forbidden", f"this is {self._address.url.partition('?')[0]}: ask it so")
        if origins and origins != [f"http://{hosts[0]}"]:
            raise Refused("forbidden", "pages of other places may not ask")
        token = self._address.token
        if token is None:
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20).get("token")
        if scope["path"] == "/" and query and _same(query[0], token):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._address.cookie, token, httponly=True, samesite="strict")
            return answer
        if not any(_same(each, token) for each in _cookies(scope, self._address.cookie)):
            raise Refused(
                "forbidden", "open the address that the command has printed, with ?token="
            )
        return None


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _cookies(scope: Scope, name: str) -> Iterable[str]:
    for header in _all(scope, b"cookie"):
        try:
            found = SimpleCookie(header[:4000]).get(name)
        except CookieError:
            continue
        if found is not None:
            yield found.value


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
