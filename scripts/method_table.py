"""Print the table of methods in docs/choosing-a-sampler.md, made from the registry.

python scripts/method_table.py           print it
python scripts/method_table.py --write   put it into the page, between the markers
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

from ddim.base.files import write_bytes
from ddim.noise.schedule import Schedule
from ddim.samplers.lookup import METHODS
from ddim.samplers.registry import Method, Option
from ddim.samplers.sampler import Sampler

PAGE = Path(__file__).resolve().parents[1] / "docs" / "choosing-a-sampler.md"
BEGIN = "<!-- made by scripts/method_table.py -->"
END = "<!-- end of what it made -->"
NEEDS = {None: "", "calibration": "calibration, for the number of steps"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put it into the page")
    options = parser.parse_args()
    if not options.write:
        print(table())
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_bytes(PAGE, f"{before}{BEGIN}\n{table()}\n{END}{after}".encode())


def table() -> str:
    """A line for each method: its name, options, order, network calls and needs."""
    lines = [
        "| `--method` | what it is | options, defaults in bold | order | calls a step | needs |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS.values():
        if not method.build.__module__.startswith("ddim."):
            continue  # the user's own
        options = "; ".join(map(shown, method.options.values()))
        needs = NEEDS.get(method.needs, f"calibration, for `{method.needs}`")
        cells = (f"`{method.name}`", summary(method), options, orders(method), calls(method), needs)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(method: Method) -> str:
    """The first sentence of its docstring; the paper becomes a link."""
    text = re.sub(r", https://[^\s)]+", "", method.summary)
    url = re.search(r"https://[\w./-]+\w", inspect.getdoc(method.build) or "")
    if url:
        text = re.sub(r"\(([^()]+ \d{4}[^()]*)\)", rf"([\1]({url[0]}))", text, count=1)
    return text.replace("|", "\\|")


def shown(option: Option) -> str:
    """An option's name and the values that it takes."""
    if option.choices:
        words = (f"**{c}**" if c == option.default else str(c) for c in option.choices)
        return f"`{option.name}` {', '.join(words)}"
    if option.default is None:
        return f"`{option.name}`"
    default = str(option.default).lower() if option.kind is bool else f"{option.default:g}"
    return f"`{option.name}` **{default}**"


def orders(method: Method) -> str:
    """The orders of convergence that the tests measure, by options."""
    if len(method.orders) == 1:
        return str(next(iter(method.orders.values())))
    return ", ".join(
        f"{order} ({options.replace(':', ', ')})" for options, order in method.orders.items()
    )


def calls(method: Method) -> str:
    """Network calls of one step more."""
    if method.needs:
        return "1"
    schedule = Schedule.linear(1000)
    few, many = (Sampler(method.name, steps).tableau(schedule).calls for steps in (50, 100))
    return f"{(many - few) / 50:g}"


if __name__ == "__main__":
    main()
