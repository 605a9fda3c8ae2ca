"""`models fetch`, by the command line, from a server of our own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub import COMMIT, Hub, served
from hugging_face import save_dnabert_s as save_published_dnabert_s
from hugging_face import save_esm2 as save_published_esm2
from safetensors.torch import load_file
from test_cli import assert_refused, virnucpro
from test_full_disk import room
from tiny import save_esm2

from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import load_dnabert_s
from virnucpro_core.models.esm2 import load_esm2
from virnucpro_core.models.store import SHIPPED, resolve_model
from virnucpro_core.published.fetch import DNABERT_S, ESM2

MINI = SHIPPED / "mini"
Fetch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The encoders of `mini` under the names of the published ones, its classifier as a `.pth`."""
    root = tmp_path / "hub"
    save_published_dnabert_s(root / DNABERT_S, load_dnabert_s(MINI / "dnabert_s"))
    shutil.copy(MINI / "dnabert_s" / "tokenizer.json", root / DNABERT_S)
    save_published_esm2(root / ESM2, load_esm2(MINI / "esm2"))
    torch.save(load_file(MINI / "classifier.safetensors"), root / "500_model.pth")
    with served(root) as hub:
        yield hub


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """The environment of a `models fetch`, with a cache of its own."""
    (tmp_path / "temporary").mkdir()
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "cache"),
        "VIRNUCPRO_MODELS": str(tmp_path / "models"),
        "TMPDIR": str(tmp_path / "temporary"),
        "NO_PROXY": "127.0.0.1",
    }


FETCH = [sys.executable, "-m", "virnucpro_core.cli", "models", "fetch"]


@pytest.fixture
def fetch(env: dict[str, str]) -> Fetch:
    """Run `models fetch virnucpro-500`."""

    def run(*options: object, name: str = "virnucpro-500") -> subprocess.CompletedProcess[str]:
        command = [*FETCH, name, *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, env=env, check=False)

    return run


def sent(hub: Hub) -> list[str]:
    return [name for name, _ in hub.downloads]


def save_bin(folder: Path, name: str = "pytorch_model.bin") -> None:
    """The folder's safetensors as torch saves them."""
    torch.save(load_file(folder / "model.safetensors"), folder / name)


def test_fetch_published_model_verifies_and_predicts_as_its_source(
    hub: Hub, fetch: Fetch, edge: Path, tmp_path: Path
) -> None:
    run = fetch("--classifier", f"{hub.url}/500_model.pth", "--models-dir", tmp_path / "own")
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "models").exists(), "the option goes before $VIRNUCPRO_MODELS"
    assert "virnucpro-500: windows of 500" in run.stdout
    models = ["--models-dir", tmp_path / "own"]
    run = virnucpro("models", "verify", "virnucpro-500", *models)
    assert "6 files are as recorded" in run.stdout, run.stderr
    about = json.loads((tmp_path / "own/virnucpro-500/model.json").read_text())
    assert about["source"] == {
        "dnabert_s": f"{DNABERT_S}@{COMMIT}",
        "esm2": f"{ESM2}@{COMMIT}",
    }
    calls = []
    for model in ("virnucpro-500", "mini"):
        out = tmp_path / model
        run = virnucpro("predict", edge, "-o", out, "--model", model, *models, "--device", "cpu")
        assert run.returncode == 0, run.stderr
        # the fetched one has no rule, so it reads no windows without a frame, in other batches
        lines = (out / "prediction_results.txt").read_text().splitlines()
        calls.append([line.split("\t")[:2] for line in lines])
    assert calls[0] == calls[1]


def test_fetch_with_both_formats_takes_safetensors_and_no_other_file(
    hub: Hub, fetch: Fetch
) -> None:
    for repo in (DNABERT_S, ESM2):
        save_bin(hub.root / repo)
        (hub.root / repo / "modeling.py").write_text("raise SystemExit")
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    encoder = ["config.json", "model.safetensors"]
    assert sorted(sent(hub)) == sorted([*encoder, *encoder, "tokenizer.json"])


def test_fetch_of_shards_takes_those_of_the_index(hub: Hub, fetch: Fetch, tmp_path: Path) -> None:
    folder = hub.root / ESM2
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    (folder / "model.safetensors").unlink()
    where = {}
    for n, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"pytorch_model-0000{n}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / shard)
        where.update(dict.fromkeys(part, shard))
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "pytorch_model-00003-of-00002.bin").write_bytes(b"not of the index")
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    model = resolve_model("virnucpro-500", tmp_path / "models")
    assert "pytorch_model-00003-of-00002.bin" not in sent(hub)
    mini = resolve_model("mini")
    assert model.weights == mini.weights, "they are stored as ours, to the bit"


def test_fetch_again_replaces_what_was_fetched_before(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    save_bin(hub.root / DNABERT_S)
    (hub.root / DNABERT_S / "model.safetensors").unlink()
    hub.downloads.clear()
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    assert sent(hub) == ["pytorch_model.bin"]
    model = resolve_model("virnucpro-500", tmp_path / "models")
    assert model.weights == resolve_model("mini").weights


@pytest.mark.parametrize("case", ["whole", "damaged", "another commit", "odd"])
def test_fetch_of_a_second_model_takes_what_the_first_one_has_whole(
    hub: Hub, fetch: Fetch, tmp_path: Path, case: str
) -> None:
    assert fetch("--classifier", hub.root / "500_model.pth").returncode == 0
    shutil.rmtree(tmp_path / "cache")
    hub.downloads.clear()
    first = tmp_path / "models" / "virnucpro-500"
    about = first / "model.json"
    asked: list[str] = []
    match case:
        case "damaged":
            (first / "esm2" / "model.safetensors").write_bytes(b"damaged")
            asked = ["config.json", "model.safetensors"]
        case "another commit":
            about.write_text(about.read_text().replace(f"{ESM2}@{COMMIT}", f"{ESM2}@beef"))
            asked = ["config.json", "model.safetensors"]
        case "odd":
            about.write_text("[]")
            asked = [*["config.json", "model.safetensors"] * 2, "tokenizer.json"]
    run = fetch("--classifier", hub.root / "500_model.pth", name="virnucpro-300")
    assert run.returncode == 0, run.stderr
    assert sorted(sent(hub)) == sorted(asked)
    models = ["--models-dir", tmp_path / "models"]
    run = virnucpro("models", "verify", "virnucpro-300", *models)
    assert run.returncode == 0, run.stderr
    second = resolve_model("virnucpro-300", tmp_path / "models")
    assert (second.window, second.lender) == (300, None)
    assert second.weights == resolve_model("mini").weights
    source = json.loads((second.folder / "model.json").read_text())["source"]
    assert source == {"dnabert_s": f"{DNABERT_S}@{COMMIT}", "esm2": f"{ESM2}@{COMMIT}"}
    shared = (second.protein / "model.safetensors").samefile(first / "esm2/model.safetensors")
    assert shared == (case == "whole"), "one file on disk"
    assert not list(second.folder.rglob(".*.link"))


def test_fetch_with_a_dropped_connection_goes_on_where_it_broke(hub: Hub, fetch: Fetch) -> None:
    shutil.rmtree(hub.root / ESM2)
    save_esm2(hub.root / ESM2, layers=4, dim=352, heads=4)
    dim = 352 + json.loads((hub.root / DNABERT_S / "config.json").read_text())["hidden_size"]
    torch.save(MLPClassifier(dim, 8).state_dict(), hub.root / "500_model.pth")
    hub.cuts[ESM2, "model.safetensors"] = 1
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    dnabert_s, first, second = [at for name, at in hub.downloads if name == "model.safetensors"]
    assert dnabert_s == first == 0
    assert second > 0


def test_fetch_that_broke_off_is_finished_by_the_same_command(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.cuts[ESM2, "model.safetensors"] = 6  # the library tries it so often
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert_refused(run, 3, r"revision main: cannot be fetched .*; run the command again, name .*")
    assert not (tmp_path / "models").exists()
    hub.downloads.clear()
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    assert sent(hub) == ["model.safetensors"]
    run = virnucpro("models", "verify", "virnucpro-500", "--models-dir", tmp_path / "models")
    assert run.returncode == 0, run.stderr


def test_fetch_of_other_bytes_than_published_exits_3_until_they_are_deleted(
    hub: Hub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.claimed["model.safetensors"] = "0" * 64
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert_refused(run, 3, r"is damaged; delete it and run the command again\.$")
    assert not (tmp_path / "models").exists()
    hub.claimed.clear()
    hub.downloads.clear()
    Path(run.stderr.splitlines()[-1].removeprefix("virnucpro: ").partition(": is")[0]).unlink()
    run = fetch("--classifier", hub.root / "500_model.pth")
    assert run.returncode == 0, run.stderr
    assert sent(hub).count("model.safetensors") == 2


@pytest.mark.parametrize(
    ("case", "pattern"),
    [
        ("absent", f"{ESM2}, revision main: there is no such repository, revision or file; run"),
        ("gated", f"{ESM2}, revision main: is gated .*HF_TOKEN.*; run"),
        ("--esm2-revision", f"{ESM2}, revision v9: there is no such repository, revision or"),
        ("--dnabert-s-revision", f"{DNABERT_S}, revision v9: there is no such repository, revi"),
        ("no tokenizer", f"{DNABERT_S}, revision main: there is no such .* or file; run"),
        ("no weights", f"{ESM2}, commit {COMMIT}: has no weights; name another revision"),
        ("down", f"{DNABERT_S}, revision main: cannot be fetched .*; run.*HF_ENDPOINT.*import"),
    ],
)
def test_fetch_from_a_hub_that_lacks_a_part_exits_3(
    hub: Hub, fetch: Fetch, tmp_path: Path, case: str, pattern: str
) -> None:
    options = ["--classifier", hub.root / "500_model.pth"]
    match case:
        case "absent":
            shutil.rmtree(hub.root / ESM2)
        case "gated":
            hub.gated.add(ESM2)
        case "--esm2-revision" | "--dnabert-s-revision":
            options += [case, "v9"]
        case "no tokenizer":
            (hub.root / DNABERT_S / "tokenizer.json").unlink()
        case "no weights":
            (hub.root / ESM2 / "model.safetensors").unlink()
        case "down":
            hub.server.socket.close()
    assert_refused(fetch(*options), 3, pattern)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("size", [1000, 100_000])
def test_fetch_onto_a_full_disk_exits_1_and_is_finished_with_room(
    hub: Hub, fetch: Fetch, tmp_path: Path, size: int
) -> None:
    with room(size):
        run = fetch("--classifier", f"{hub.url}/500_model.pth")
    assert_refused(run, 1, "File too large; nothing finished is lost, mend that and run")
    assert not list((tmp_path / "models").glob("*/model.json"))
    run = fetch("--classifier", f"{hub.url}/500_model.pth")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("stalls", "number"),
    [("model.safetensors", signal.SIGTERM), ("config.json", signal.SIGINT)],
)
def test_fetch_stopped_within_a_file_exits_75_and_is_finished_by_the_same_command(
    hub: Hub, fetch: Fetch, env: dict[str, str], tmp_path: Path, stalls: str, number: signal.Signals
) -> None:
    hub.stalls = stalls
    options = ["--classifier", str(hub.root / "500_model.pth")]
    command = [*FETCH, "virnucpro-500", *options]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    assert hub.stalled.wait(120)
    run.send_signal(number)
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 75, said
    assert said.splitlines()[-1].startswith(f"virnucpro: stopped by {number.name}; ")
    assert not (tmp_path / "models").exists()
    assert not list((tmp_path / "temporary").iterdir())
    hub.stalls = ""
    assert fetch(*options).returncode == 0
    verified = virnucpro("models", "verify", "virnucpro-500", "--models-dir", tmp_path / "models")
    assert verified.returncode == 0, verified.stderr


def test_fetch_without_classifier_says_where_to_get_it(hub: Hub, fetch: Fetch) -> None:
    pattern = r"get 300_model\.pth from https://github\.com/\S+ and give .* --classifier"
    assert_refused(fetch(name="virnucpro-300"), 2, pattern)
    assert not hub.downloads


@pytest.mark.parametrize(
    ("classifier", "pattern"),
    [
        ("absent.pth", r"absent\.pth: cannot be read \(No such file"),
        ("{hub}/absent.pth", r"absent\.pth: cannot be fetched .*404.*; get it by other means"),
        ("http://127.0.0.1:1/500_model.pth", "500_model.pth: cannot be fetched .*; get it by"),
        ("{hub}/page.html", "page.html: .*refused"),
    ],
)
def test_fetch_with_a_bad_classifier_exits_3_before_anything_large(
    hub: Hub, fetch: Fetch, classifier: str, pattern: str
) -> None:
    (hub.root / "page.html").write_text("<!DOCTYPE html>")
    assert_refused(fetch("--classifier", classifier.format(hub=hub.url)), 3, pattern)
    assert not hub.downloads


def test_fetch_of_an_unknown_model_exits_2(fetch: Fetch) -> None:
    assert_refused(fetch(name="mini"), 2, "'mini' is not published; choose one of virnucpro-300")
