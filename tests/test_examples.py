import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def example(monkeypatch):
    """``example(name, *arguments)`` runs an example as its command line does."""

    def run(name: str, *arguments: object) -> None:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module.main()

    return run


@pytest.fixture
def idx(tmp_path):
    """A folder with 50 images of 8 × 8 pixels, as MNIST's."""
    folder = tmp_path / "data"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    for stem, array in (("images-idx3", pixels), ("labels-idx1", np.zeros(50, np.uint8))):
        header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / f"train-{stem}-ubyte").write_bytes(header + array.tobytes())
    return folder


@pytest.mark.parametrize("levels", [2, 4])
def test_discrete_mnist(example, idx, tmp_path, capsys, levels):
    output = tmp_path / "digits.png"
    arguments = ("--data", idx, "--levels", levels, "--output", output, "--quick")
    example("discrete_mnist", *arguments)
    with Image.open(output) as picture:
        first = np.asarray(picture)
    assert first.shape == (2 * 10 - 2, 3 * 18 + 2 * 6)
    assert set(np.unique(first)) == {255 * level // (levels - 1) for level in range(levels)}
    assert "step 20/20" in capsys.readouterr().err

    # The second time it finds the training done.
    example("discrete_mnist", *arguments, "--force")
    with Image.open(output) as picture:
        assert np.array_equal(first, np.asarray(picture))
    assert "step" not in capsys.readouterr().err


def test_discrete_mnist_refuses_in_one_line(example, idx, tmp_path, capsys):
    output = tmp_path / "digits.png"
    arguments = ("--data", idx, "--output", output, "--quick")
    for wrong, message in (
        (("--levels", 1), "levels must be from 2 to 256, not 1"),
        (("--eta", 2), "eta must be in [0, 1], not 2.0"),
    ):
        with pytest.raises(SystemExit) as info:
            example("discrete_mnist", *arguments, *wrong)
        assert info.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    output.write_bytes(b"")
    with pytest.raises(SystemExit):
        example("discrete_mnist", *arguments)
    assert "exists already" in capsys.readouterr().err
