"""Build the package, install it by itself, and use it: what a user gets, on a fresh environment.

    python scripts/check_package.py
    python scripts/check_package.py --torch-index ADDRESS --keep dist

Builds the source distribution and the wheel in a copy of what git tracks, looks at what is in
them, installs the wheel with its core dependencies alone (and constraints.txt) into a new
environment, and runs it in an empty folder, with nothing of the repository on its path. It ends
with status 1 at the first thing that is wrong. It needs git, Python 3.10 and a package index.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 10_000_000
"""Bytes of the wheel."""
IN_WHEEL = (
    "ddim/py.typed",
    "ddim/__init__.pyi",
    "ddim/evaluate/sweep/report.html.jinja",
    "ddim/interop/card.md.jinja",
    "ddim/web/page/index.html",
    "ddim/shipped/mnist/unet/diffusion_pytorch_model.safetensors",
    "ddim/shipped/mnist/calibrated.json",
    "ddim/shipped/mnist-cond/unet/diffusion_pytorch_model.safetensors",
    "ddim/shipped/lenet/model.safetensors",
    "ddim/shipped/lenet/statistics.safetensors",
)
IN_SDIST = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
    "constraints.txt", "docs/index.md", "examples/discrete_mnist.py", "pyproject.toml",
    "scripts/readme_links.py", "setup.py", "src/ddim/py.typed", "tests/conftest.py",
    "tests/helpers/tiny.py",
)  # fmt: skip
EXTRAS: dict[str, str] = {
    "plot": "inspect --output nodes.png",
    "data": "train --preset digits --output run",
    "ode": "",  # the library alone
    "onnx": "convert mnist --onnx mnist.onnx",
    "fast": "sample --backend ncnn -n 1 --output y.png",
    "hub": "sample --model someone/model -n 1 --output y.png",
    "web": "serve --no-browser",
    "tensorboard": "train --data images.npz --channels 8 --groups 4 --output run --tensorboard",
    "wandb": "train --data images.npz --channels 8 --groups 4 --output run --wandb project",
}
"""What asks for each extra where it is not installed."""
LIBRARY = """
import contextlib, io, json, sys
import numpy as np
import ddim
from ddim.cli.main import main
from ddim.samplers.adaptive import solve_adaptively

for name in [*ddim.__all__, *ddim.__dir__()]:
    assert getattr(ddim, name) is not None, name
out = io.StringIO()
with contextlib.redirect_stdout(out):
    assert main(["checks", "--json"]) == 0
assert json.loads(out.getvalue())["environment"]["ddim"] == ddim.__version__
np.savez("images.npz", images=np.zeros((8, 8, 8), np.uint8))
said = {}
for extra, command in json.loads(sys.argv[1]).items():
    err = io.StringIO()
    if command:
        with contextlib.redirect_stderr(err):
            status = main(command.split())
        said[extra] = [status, err.getvalue()]
model = ddim.load("mnist")
noise = ddim.Noise(seed=0, images=[0], shape=model.shape)
try:
    solve_adaptively(model.denoiser(), model.schedule, noise(0))
except ddim.InputError as error:
    said["ode"] = [2, f"{error}\\n"]
print(json.dumps(said))
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-index", default="", help="where torch is taken from")
    parser.add_argument("--keep", type=Path, help="the folder for what was built")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ddim-package-") as name:
        work = Path(name)
        with timed("a copy of what git tracks"):
            source = copied(work / "source")
        with timed("build and twine, installed"):
            tools = environment(work / "tools")
            pip(tools, "build", "twine")
        with timed("the distributions"):
            dist = work / "dist"
            run([tools / "python", "-m", "build", "--outdir", dist, source], work)
        wheel, sdist = sorted(dist.iterdir(), key=lambda path: path.suffix != ".whl")
        look_into(wheel, sdist)
        run([tools / "twine", "check", "--strict", wheel, sdist], work)
        with timed("torch, the wheel and its core dependencies"):
            fresh = environment(work / "fresh")
            index = ["--index-url", arguments.torch_index] if arguments.torch_index else []
            constraints = "-c", ROOT / "constraints.txt"
            if index:
                pip(fresh, "torch", *constraints, *index)
            pip(fresh, wheel, *constraints)
        with timed("its use"):
            use(fresh, work / "empty")
        if arguments.keep is not None:
            shutil.copytree(dist, arguments.keep, dirs_exist_ok=True)
    return 0


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.0f} s", flush=True)


def copied(folder: Path) -> Path:
    """What git tracks, as it stands in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> Path:
    """A new environment's folder of commands."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def pip(commands: Path, *arguments: object) -> None:
    run([commands / "python", "-m", "pip", "install", "--quiet", "--no-compile", *arguments], ROOT)


def run(words: Sequence[object], folder: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command without anything of this repository on its path.

    Raises:
        SystemExit: it ends with another status.
    """
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    variables = {key: value for key, value in os.environ.items() if key not in hidden}
    words = [str(word) for word in words]
    done = subprocess.run(
        words, cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode != status:
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(f"status {done.returncode}, not {status}: {' '.join(words)[:200]}")
    return done


def look_into(wheel: Path, sdist: Path) -> None:
    """Whether both hold what they should, and the wheel nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = [name for name in IN_WHEEL if name not in names]
    other = [name for name in names if name.split("/")[0].split("-")[0] != "ddim"]
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size / 1e6:.2f} MB, {len(names)} files", flush=True)
    if missing or other or size > LARGEST:
        sys.exit(f"{wheel.name}: missing {missing}, not ours {other}, {size:,} bytes")
    with tarfile.open(sdist) as archive:
        inner = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_SDIST if name not in inner]
    size = sdist.stat().st_size
    print(f"{sdist.name}: {size / 1e6:.2f} MB, {len(inner)} files", flush=True)
    if missing or any(name.endswith(".pyc") or ".venv" in name for name in inner):
        sys.exit(f"{sdist.name}: missing {missing}, or holds what was compiled")


def use(commands: Path, folder: Path) -> None:
    """Run what a user would run first, and what asks for an extra that is not there."""
    folder.mkdir()
    ddim, python = commands / "ddim", commands / "python"
    run([ddim, "--help"], folder)
    run([ddim, "sample", "--model", "mnist", "-n", 4, "--steps", 5, "--output", "x.png"], folder)
    if not (folder / "x.png").read_bytes().startswith(b"\x89PNG"):
        sys.exit("ddim sample wrote no PNG")
    asked = run([python, "-c", LIBRARY, json.dumps(EXTRAS)], folder).stdout.splitlines()[-1]
    for extra, (status, said) in json.loads(asked).items():
        if status != 2 or said.count("\n") != 1 or f"pip install 'ddim[{extra}]'" not in said:
            sys.exit(f"{extra} is not asked for in one line, but with {status}: {said}")
    print(f"every public name; {len(EXTRAS)} extras asked for, each in one line", flush=True)


if __name__ == "__main__":
    sys.exit(main())
