"""``ddim serve``: the page."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from ddim.base.errors import InputError
from ddim.cli.groups import DeviceOptions, Switch, unset
from ddim.cli.options import listed, parse
from ddim.cli.report import print_json

if TYPE_CHECKING:
    from ddim.model.model import Model
    from ddim.web.guard import Address
    from ddim.web.ways import Origin

__all__ = ["ServeOptions", "main"]

LATER = 3.0
"""Seconds after which the first model is loaded, whether or not somebody has come."""


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """Show in a browser what models do: samplers side by side, step by step, and latents.

    The page is served to this machine alone, loads nothing from anywhere else, and writes no files.
    With another --host whoever opens the address with its token may use it; what is sent is not
    encrypted. Every picture comes with the command and the Python that make it again, bit for bit.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "ddim serve --model mnist runs/mine --port 8000",
        "ddim serve --host 0.0.0.0 --no-browser",
    )

    model: Annotated[tuple[str, ...], unset("the shipped models", "MODEL ...")] = ()
    """Shipped models, model folders, training runs, checkpoints of any known kind, FILE.py:NAME,
    owner/name on the Hub."""
    evaluation: Annotated[str | None, unset("none", "FOLDER")] = None
    """A folder that `ddim evaluate` has written, whose figures the page shows."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for all of this machine's."""
    port: Annotated[int | None, unset("7860, or the next that is free", "INT")] = None
    """The port to listen on."""
    token: Annotated[str | None, unset("none on loopback, else a new one", "TEXT")] = None
    """What the page must be opened with, as ?token=TEXT: letters, digits, - and _."""
    no_browser: Switch = False
    """Print the address, and open no browser."""
    json: Switch = False
    """Print the address and the models as one JSON document."""
    device: DeviceOptions = DeviceOptions()
    backend: str = "auto"
    """auto, the fastest exact one; torch, ncnn, openvino; on CUDA compile."""

    def sources(self) -> list[str]:
        """The models that are to be served.

        Raises:
            InputError: one of them is not there.
        """
        from ddim.model.names import shipped
        from ddim.web.models import check_source

        return [check_source(each) for each in listed(self.model) or shipped()]

    def secret(self, host_is_loopback: bool) -> str | None:
        """The token.

        Raises:
            InputError: one that cannot stand in an address.
        """
        if self.token is None:
            return None if host_is_loopback else secrets.token_urlsafe(24)
        plain = self.token.replace("-", "").replace("_", "")
        if not (plain.isascii() and plain.isalnum() and 8 <= len(self.token) <= 200):
            raise InputError("--token is of 8 to 200 letters, digits, - and _")
        return self.token


def main(argv: Sequence[str]) -> int:
    """Run the verb; see :class:`ServeOptions`."""
    options = parse(ServeOptions, "serve", argv)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("the page needs a server: pip install 'ddim[web]'") from None

    from ddim.web.app import App, make_app
    from ddim.web.guard import Address, is_loopback
    from ddim.web.jobs import Jobs
    from ddim.web.models import Models
    from ddim.web.pages import read_page
    from ddim.web.server import bind, serve
    from ddim.web.tradeoff import read_evaluation

    sources, token = options.sources(), options.secret(is_loopback(options.host))
    jobs = Jobs()
    models = Models(sources, lambda source: _opened(options, source), jobs)
    evaluation = None if options.evaluation is None else read_evaluation(options.evaluation)
    app = App(models, jobs, read_page(), evaluation)
    listener = bind(options.host, options.port)
    address = Address(options.host, listener.getsockname()[1], token)

    def begun() -> None:
        # Importing torch holds the interpreter: the page, which asks for its model, comes first.
        asyncio.get_running_loop().call_later(LATER, models.load_first)
        _tell(options, address, [model["name"] for model in models.state()])

    serve(make_app(app, address), listener, jobs, begun)
    return 0


def _opened(options: ServeOptions, source: str) -> tuple[Model, Origin]:
    """A model as the options have it, on the thread where it will run."""
    import torch

    from ddim.base.device import set_threads
    from ddim.model.opening import load
    from ddim.web.ways import Origin

    set_threads(options.device.threads)
    model = load(source, device=options.device.device)
    cast = model.dtype is not torch.float32
    model = (model.to(dtype=torch.float32) if cast else model).with_backend(options.backend)
    if model.runs_on == "cuda-graph":
        raise InputError("a CUDA graph shows none of its steps: --backend torch")
    return model, Origin(source, options.device.device, options.backend, cast)


def _tell(options: ServeOptions, address: Address, names: Sequence[str]) -> None:
    """Print where the page is, and open it."""
    from ddim.web.server import open_browser

    if options.json:
        print_json({"address": address.url, "models": list(names)})
        sys.stdout.flush()
    else:
        print(f"{address.url} (Ctrl-C ends it)", flush=True)
    if not options.no_browser:
        open_browser(address)
