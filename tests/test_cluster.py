"""The files of examples/cluster: their syntax, and that the commands in them are commands."""

from __future__ import annotations

import os
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from ddim.cli.options import flat, parse

FOLDER = Path(__file__).parent.parent / "examples" / "cluster"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sh", ".sbatch"))
STUB = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0")" "$@" "" >> "$CALLS"\n'


def commands(tmp_path: Path, shell: list[str], **variables: str) -> list[list[str]]:
    """The words of each program that a script starts, by programs that only note them."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("ddim", "torchrun", "srun", "scontrol", "put", "get"):
        (programs / name).write_text(STUB)
        (programs / name).chmod(0o755)
    calls = tmp_path / "calls"
    path = f"{programs}:{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "CALLS": str(calls), **variables}
    subprocess.run(shell, check=True, cwd=tmp_path, env=env, timeout=60)
    return [call.split("\n") for call in calls.read_text().strip().split("\n\n")]


def check(words: list[str]) -> tuple[str, dict[str, object]]:
    """The verb and the options of a call of ddim, straight or by torchrun."""
    verb, *rest = words[words.index("ddim") + 1 :]
    module = import_module(f"ddim.cli.{verb}")
    return verb, flat(parse(getattr(module, f"{verb.title()}Options"), verb, rest))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_takes_it(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_one_gpu_and_eight(tmp_path):
    one = commands(tmp_path, ["bash", str(FOLDER / "one-gpu.sh")])
    assert [check(words)[0] for words in one] == ["sample", "verify"]
    (tmp_path / "more").mkdir()
    eight = commands(tmp_path / "more", ["bash", str(FOLDER / "eight-gpus.sh")])
    assert [check(words)[0] for words in eight] == ["train", "sample", "evaluate"]
    for words in eight:
        assert words[: words.index("ddim")][:3] == ["torchrun", "--standalone", "--nproc-per-node"]


def test_the_array_of_jobs(tmp_path):
    shell = ["bash", str(FOLDER / "slurm-array.sbatch")]
    jobs = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64"}
    verb, options = check(commands(tmp_path, shell, **jobs)[-1])
    assert (verb, options["n"], options["shard"]) == ("sample", 50_000_000, "3/64")


def test_training_on_two_machines(tmp_path):
    shell = ["bash", str(FOLDER / "slurm-train.sbatch")]
    jobs = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    words = commands(tmp_path, shell, **jobs)[-1]
    assert words[:2] == ["srun", "torchrun"]
    assert check(words)[1]["resume"] is True


def test_the_spot_machine(tmp_path):
    shell = ["bash", str(FOLDER / "spot.sh"), "2", "5"]
    called = commands(tmp_path, shell, PUT="put", GET="get", EVERY="0.1")
    names = [words[0] for words in called]
    assert names[0] == "get"
    assert names[-1] == "put"
    [drawn] = [words for words in called if words[0] == "ddim"]
    assert check(drawn)[1]["shard"] == "2/5"


def test_the_kubernetes_job(tmp_path):
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((FOLDER / "kubernetes-indexed-job.yaml").read_text())
    assert set(job) == {"apiVersion", "kind", "metadata", "spec"}
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    kinds = {
        "completionMode": str,
        "completions": int,
        "parallelism": int,
        "backoffLimitPerIndex": int,  # of an indexed job whose pods are never restarted
        "template": dict,
    }
    assert {key: type(value) for key, value in spec.items()} == kinds
    assert spec["completionMode"] == "Indexed"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 30
    [container] = pod["containers"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    shell = [*container["command"], *container["args"]]
    verb, options = check(commands(tmp_path, shell, JOB_COMPLETION_INDEX="9")[-1])
    assert (verb, options["shard"]) == ("sample", f"9/{spec['completions']}")
    assert options["prometheus"] == "/metrics/ddim-9.prom"
