"""A process that has torch already, and forks one for each command that it is asked to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Server:
    """Answers jobs, a line of JSON each, in a folder.

    Args:
        script: what it runs.
        folder: where.
        variables: of its environment, over this process's.
    """

    def __init__(self, script: str, folder: Path, **variables: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        )

    def __call__(self, *job: object) -> Any:
        """The answer to a job."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()
