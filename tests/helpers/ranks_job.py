"""A process of a job: goes through commands, and notes how each ended and what it said."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from pathlib import Path

from ddim.base.ranks import here, joined
from ddim.cli.main import main
from ddim.model.drawing import generate, step_count
from ddim.model.opening import load


def run(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Exit status and standard error of each; ``{RANK}`` in a word stands for the process."""
    found = []
    for words in commands:
        own = [word.replace("{RANK}", str(here().rank)) for word in words]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = main(own)
        found.append((status, said.getvalue()))
    return found


def steps(source: str) -> tuple[int, int]:
    """How many steps are yielded, and how many are foretold."""
    model = load(source)
    tableau = model.tableau("ddim:steps=3")
    drawn = list(generate(model, tableau, range(19), batch_size=4))
    ends = [i for event in drawn if event.outputs for i in event.indices]
    assert ends == list(range(19))
    return len(drawn), step_count(model, tableau, 19, 4)


if __name__ == "__main__":
    commands, source = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with joined(60):
        ended = {"commands": run(commands), "steps": steps(source)}
        Path(f"said-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(ended))
