"""Names on the Hub, against a server on this machine that speaks its protocol."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim.base.errors import InputError, RunError
from ddim.checkpoints.hub import pinned
from ddim.checkpoints.names import named
from ddim.checkpoints.tensors import read_safetensors
from ddim.denoisers.target import Target
from ddim.model.model import Model
from ddim.model.opening import load
from ddim.noise.schedule import Schedule
from fake_hub import FakeHub
from tiny import tiny_unet

RECORDS = ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json", "ddim.json"]
WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder of ours."""
    model = Model(tiny_unet(), Schedule.linear(20, 0.01, 0.4), Target.EPS, (1, 8, 8), name="tiny")
    model.save(tmp_path / "tiny")
    return tmp_path / "tiny"


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def flat_files(folder: Path) -> dict[str, bytes]:
    """The same as the oldest repositories have it: all in one folder, and no record of ours."""
    ours = files_of(folder)
    return {name.rpartition("/")[2]: data for name, data in ours.items() if name != "ddim.json"}


def pickled(folder: Path) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(dict(read_safetensors(folder / f"unet/{WEIGHTS}.safetensors")[0]), buffer)
    return buffer.getvalue()


def test_a_name_opens_what_the_folder_does(hub: FakeHub, folder, capfd, caplog):
    commit = hub.add("someone/tiny", folder)
    model, own = load("someone/tiny"), load(folder)
    assert model.identity == own.identity
    assert model.name == f"someone/tiny@{commit[:12]}"
    assert model.facts.more["hub"] == {"name": "someone/tiny", "commit": commit}
    assert pinned("someone/tiny") == f"someone/tiny@{commit}"
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert all(agent.startswith("ddim/0.") for agent in hub.agents)


def test_only_the_files_that_are_needed_are_fetched(hub: FakeHub, folder):
    more = {"README.md": b"card", "samples.png": b"png", "unet/model.onnx": b"no"}
    more |= {f"unet/{WEIGHTS}.bin": b"a pickle", f"unet/{WEIGHTS}.fp16.safetensors": b"half"}
    hub.commit("someone/tiny", {**files_of(folder), **more})
    load("someone/tiny")
    assert hub.fetched() == [*RECORDS, f"unet/{WEIGHTS}.safetensors"]


def test_a_flat_repository_of_diffusers(hub: FakeHub, folder):
    hub.commit("google/flat", {**flat_files(folder), f"{WEIGHTS}.bin": b"another program"})
    assert load("google/flat").identity == load(folder).identity
    fetched = ["config.json", "scheduler_config.json", "model_index.json"]
    assert hub.fetched() == [*fetched, f"{WEIGHTS}.safetensors"]


def test_a_pickle_where_there_is_nothing_else(hub: FakeHub, folder, refuses):
    files = flat_files(folder)
    del files[f"{WEIGHTS}.safetensors"]
    hub.commit("google/old", {**files, f"{WEIGHTS}.bin": pickled(folder)})
    assert load("google/old").identity == load(folder).identity
    code = b"cbuiltins\neval\n(S'1/0'\ntR."
    hub.commit("google/evil", {**files, f"{WEIGHTS}.bin": code})
    with refuses(f"^google/evil: {WEIGHTS}.bin"):
        load("google/evil")


def test_an_average_beside_the_raw_weights(hub: FakeHub, folder):
    raw = files_of(folder)
    other = Model(tiny_unet(), Schedule.linear(20, 0.01, 0.4), Target.EPS, (1, 8, 8))
    with torch.no_grad():
        next(iter(other.net.parameters())).add_(1)
    other.save(folder.parent / "other")
    ema = files_of(folder.parent / "other")
    averaged = {n.replace("unet/", "unet_ema/"): d for n, d in ema.items() if "unet/" in n}
    hub.commit("someone/both", {**raw, **averaged})
    assert load("someone/both").identity == load(folder.parent / "other").identity
    assert hub.fetched()[-1] == f"unet_ema/{WEIGHTS}.safetensors"
    model = load("someone/both", weights="net")
    assert model.identity == load(folder).identity and model.facts.weights == "net"
    assert hub.fetched() == [f"unet/{WEIGHTS}.safetensors"]


def test_weights_in_several_files(hub: FakeHub, folder, refuses):
    from safetensors.torch import save

    files = files_of(folder)
    tensors = dict(read_safetensors(folder / f"unet/{WEIGHTS}.safetensors")[0])
    del files[f"unet/{WEIGHTS}.safetensors"]
    keys, places = sorted(tensors), {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"{WEIGHTS}-0000{number}-of-00002.safetensors"
        files[f"unet/{name}"] = save({key: tensors[key].contiguous() for key in part})
        places |= dict.fromkeys(part, name)
    files[f"unet/{WEIGHTS}.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    hub.commit("someone/shards", files)
    assert load("someone/shards").identity == load(folder).identity
    assert len(hub.fetched()) == 4 + 3
    del files[f"unet/{WEIGHTS}-00002-of-00002.safetensors"]
    hub.commit("someone/part", files)
    with refuses("^someone/part: .*names .*00002-of-00002.*which it has not"):
        load("someone/part")


def test_revisions(hub: FakeHub, folder, refuses):
    files = files_of(folder)
    first = hub.commit("someone/tiny", files)
    hub.refs["someone/tiny"]["v1.0"] = first
    hub.commit("someone/tiny", {**files, "more": b""}, "refs/pr/1")
    second = hub.commit("someone/tiny", {**files, "more": b""})
    names = [load(f"someone/tiny{r}").name for r in ("", "@main", "@v1.0", "@refs/pr/1")]
    ends = [name.partition("@")[2] for name in names]
    assert ends[:3] == [second[:12], second[:12], first[:12]]
    assert ends[3] == hub.refs["someone/tiny"]["refs/pr/1"][:12]
    with refuses("^someone/tiny has no revision v2: give a branch, a tag or a commit"):
        load("someone/tiny@v2")


def test_a_commit_that_is_cached_takes_no_network(hub: FakeHub, folder, tmp_path):
    commit = hub.add("someone/tiny", folder)
    load("someone/tiny")
    hub.asked.clear()
    for name in (f"someone/tiny@{commit}", f"someone/tiny@{commit[:12]}"):
        assert load(name).name == f"someone/tiny@{commit[:12]}"
    assert hub.asked == []
    assert not list((tmp_path / "hub-cache").rglob("*.incomplete"))


def test_a_branch_is_asked_for_again(hub: FakeHub, folder):
    hub.add("someone/tiny", folder)
    load("someone/tiny")
    commit = hub.commit("someone/tiny", {**files_of(folder), "more": b""})
    assert load("someone/tiny").name == f"someone/tiny@{commit[:12]}"


def test_offline_by_wish(hub: FakeHub, folder, monkeypatch, refuses, caplog):
    hub.add("someone/tiny", folder)
    load("someone/tiny")
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load("someone/tiny").identity == load(folder).identity
    with refuses("^HF_HUB_OFFLINE is set, and someone/other is not in the cache"):
        load("someone/other")
    assert hub.asked == [] and not caplog.records


@pytest.mark.parametrize("how", ["fails", "nobody"])
def test_no_network(hub: FakeHub, folder, monkeypatch, caplog, capfd, how):
    commit = hub.add("someone/tiny", folder)
    load("someone/tiny")
    hub.failing = 503
    if how == "nobody":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert load("someone/tiny").name == f"someone/tiny@{commit[:12]}"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(
        f"someone/tiny: taken from the cache, at commit {commit[:12]}: the Hub at"
    )
    with pytest.raises(RunError, match=r"^the Hub at http://127\.0\.0\.1:.*(fail|cannot)") as error:
        load("someone/other")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_another_program_has_fetched_is_taken_offline(hub, folder, monkeypatch, caplog):
    from huggingface_hub import snapshot_download

    hub.add("someone/tiny", folder)
    snapshot_download("someone/tiny", endpoint=hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load("someone/tiny").identity == load(folder).identity
    assert "taken as far as another program has fetched it" in caplog.text


def test_a_connection_that_breaks_half_way(hub: FakeHub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.add("someone/tiny", folder)
    hub.breaks = {f"unet/{WEIGHTS}.safetensors": 2, "ddim.json": 1}
    assert load("someone/tiny").identity == load(folder).identity
    assert set(hub.breaks.values()) == {0}


def test_access(hub: FakeHub, folder, monkeypatch, refuses):
    hub.add("someone/private", folder)
    hub.add("someone/gated", folder)
    hub.private, hub.gated = {"someone/private"}, {"someone/gated"}
    with refuses("^there is no model someone/private at http.*a private one needs a token"):
        load("someone/private")
    with refuses("^someone/gated is gated: ask for access at http.*/someone/gated"):
        load("someone/gated")
    with refuses("^there is no model someone/typo at http.*nor a path of that name here"):
        load("someone/typo")
    monkeypatch.setenv("HF_TOKEN", "reads")
    assert load("someone/private").identity == load("someone/gated").identity
    with refuses("^there is no model someone/typo"):
        load("someone/typo")


def test_what_is_no_model_of_ours(hub: FakeHub, folder, refuses):
    """It is refused before its weights are fetched."""
    ours = files_of(folder)
    config = json.loads(ours["unet/config.json"])
    index = json.loads(ours["model_index.json"])
    conditional = json.dumps({**config, "_class_name": "UNet2DConditionModel"}).encode()
    latent = json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}).encode()
    language = b'{"architectures": ["BertModel"], "hidden_size": 768}'
    unweighted = {name: data for name, data in ours.items() if WEIGHTS not in name}
    for name, files, why in (
        ("someone/data", {"README.md": b"", "data.csv": b""}, "it has no config.json"),
        ("someone/bert", {"config.json": language, "model.safetensors": b""}, "names no class of"),
        ("someone/sd", {**ours, "unet/config.json": conditional}, "a UNet2DConditionModel cannot"),
        ("someone/ldm", {**ours, "model_index.json": latent}, "has vae too"),
        ("someone/empty", unweighted, "has no weights unet/diffusion_pytorch_model"),
        ("someone/halves", {**ours, "unet/config.json": b"{"}, "unet/config.json is not valid"),
    ):
        hub.commit(name, files)
        with refuses(f"^{name}.*{re.escape(why)}"):
            load(name)
        assert not [file for file in hub.fetched() if file.endswith(".safetensors")]


def test_hints_are_refused_before_anything_is_asked(hub: FakeHub, refuses):
    with refuses("records its own schedule"):
        load("someone/tiny", schedule=Schedule.linear(20))
    with refuses("did you mean 'ema'"):
        load("someone/tiny", weights="emma")
    with refuses("device"):
        load("someone/tiny", device="cudda")
    assert hub.asked == []


def test_local_names_come_first_and_take_no_network(folder, monkeypatch, tmp_path, refuses):
    def closed(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", closed)
    monkeypatch.setattr(socket, "getaddrinfo", closed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    folder.rename(tmp_path / "owner" / "name")
    assert load("owner/name").name == "tiny"
    assert load("mnist").name == "mnist"
    for name in ("mnits", "./someone/tiny", "/no/path", "a/b/c", "runs/model-10.pt"):
        with refuses("there is no such path"):
            load(name)
    with refuses("^there is no owner/other in the folder owner.*: write owner/other@main"):
        load("owner/other")
    with refuses("there is no such path"):
        load(Path("someone/tiny"))


def test_nothing_of_the_hub_is_imported_for_a_shipped_model():
    script = "import sys, ddim; ddim.load('mnist'); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_without_the_extra(monkeypatch, refuses):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with refuses(r"^there is no path someone/tiny here.*pip install 'ddim\[hub\]'$"):
        load("someone/tiny")


def test_a_server_that_is_no_hub(hub: FakeHub, monkeypatch):
    hub.repos["someone/tiny"] = {"no commit": {}}
    hub.refs["someone/tiny"] = {"main": "no commit"}
    with pytest.raises(RunError, match="is no Hub: it names no commit"):
        load("someone/tiny")


@pytest.mark.parametrize(
    "text", ["someone/a--b", "someone/..", "a/b@", "a b/c", "someone/tiny@../x y", "-a/b"]
)
def test_what_is_no_name(text: str):
    assert named(text) is None


def test_a_revision_does_not_lead_out_of_the_cache(hub: FakeHub, folder, tmp_path):
    hub.add("someone/tiny", folder)
    with pytest.raises(InputError, match="has no revision"):
        load("someone/tiny@../../x")
    assert not (tmp_path / "hub-cache").exists()
