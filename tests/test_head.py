"""A classifier of one's own on encoders that stay as they are: trained, stored, and used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqFeature import FeatureLocation, SeqFeature
from Bio.SeqRecord import SeqRecord
from test_store import fair_esm
from tiny import ENDS, WINDOW, coding, save_dnabert_s
from torch import nn

import virnucpro_core as vnp
from virnucpro_core.embedding.engine import embed
from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.lab.embedded import Embedded, Given, Labels, held_frames, held_groups
from virnucpro_core.lab.genbank import is_genbank, translate_genbank
from virnucpro_core.lab.head import ORIGINAL, HeadRecipe, balanced, calibrate, fit, odds_of
from virnucpro_core.lab.train_head import train_head
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.store import FILES, Model, resolve_model, verify
from virnucpro_core.published.imports import import_model
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.translate import translate

CPU = "cpu"
QUICK = HeadRecipe(hidden=16, batch=32, epochs=8)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `pair`: encoders in published formats, imported without a classifier."""
    parts = tmp_path_factory.mktemp("parts")
    save_dnabert_s(parts / "DNABERT-S")
    esm2 = fair_esm(parts / "esm2_t2.pt", 2, 32, 4, torch.float32)
    root = tmp_path_factory.mktemp("store")
    import_model("pair", dnabert_s=parts / "DNABERT-S", esm2=esm2, models_dir=root, window=WINDOW)
    return root


@pytest.fixture(scope="module")
def pair(store: Path) -> Model:
    return resolve_model("pair", store)


@pytest.fixture(scope="module")
def shards(
    fastas: dict[str, Path], pair: Model, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The embeddings of `fastas`."""
    folder = tmp_path_factory.mktemp("shards")
    for kind, path in fastas.items():
        translate([path], folder / f"{kind}.parquet", WINDOW)
        embed(folder / f"{kind}.parquet", folder / f"{kind}.h5", pair, devices=CPU)
    return {kind: folder / f"{kind}.h5" for kind in fastas}


@pytest.fixture(scope="module")
def labels(shards: dict[str, Path]) -> Labels:
    found = Labels()
    for kind, path in shards.items():
        given = Given(path, kind == "virus", True)
        found.add((ids for ids, _ in EmbeddingFile(path).parts()), given)
    return found


@pytest.fixture(scope="module")
def data(shards: dict[str, Path], labels: Labels) -> Embedded:
    return Embedded.of([EmbeddingFile(path) for path in shards.values()], labels.viral)


def everything(shards: dict[str, Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """All embeddings and labels, as one tensor each."""
    parts = {
        kind: np.concatenate([x for _, x in EmbeddingFile(path).parts()])
        for kind, path in shards.items()
    }
    truth = np.repeat([int(kind == "virus") for kind in parts], [len(x) for x in parts.values()])
    return torch.from_numpy(np.concatenate(list(parts.values()))), torch.from_numpy(truth)


def plain_loop(
    x: torch.Tensor, y: torch.Tensor, training: Any, epochs: int, seed: int, recipe: HeadRecipe
) -> nn.Module:
    """What the original's train.py does, over rows in the order that ours takes them."""
    torch.manual_seed(seed)
    net = MLPClassifier(x.shape[1], recipe.hidden)
    nn.init.xavier_uniform_(net.hidden_layer.weight)
    nn.init.xavier_uniform_(net.output_layer.weight)
    weight = None
    if recipe.optimizer == "sgd":
        optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.0002, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.001, weight_decay=0.01)
        counts = torch.bincount(y[training])
        weight = (counts.sum() / (2 * counts)).float()
    criterion = nn.CrossEntropyLoss(weight=weight)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.85)
    for epoch in range(1, epochs + 1):
        net.train()
        rng = np.random.default_rng([seed, epoch])
        rng.permutation(-(-len(training) // 256))
        order = training[rng.permutation(len(training))]
        for at in torch.split(torch.from_numpy(order), recipe.batch):
            optimizer.zero_grad()
            loss = criterion(net(x[at]), y[at])
            loss.backward()
            optimizer.step()
        scheduler.step()
    return net.eval()


@pytest.mark.parametrize("recipe", [ORIGINAL, HeadRecipe(calibrated=False, kept="last", batch=32)])
def test_fit_equals_a_plain_pytorch_loop_to_the_bit(
    recipe: HeadRecipe, data: Embedded, labels: Labels, shards: dict[str, Path]
) -> None:
    recipe = replace(recipe, epochs=12, patience=99)
    parts = held_frames(labels, 3) if recipe.held_out == "frames" else held_groups(labels)
    classifier, course = fit(data, parts, recipe, 3, "cpu")
    assert len(course) == 12
    x, y = everything(shards)
    net = plain_loop(x, y, parts["training"], 12, 3, recipe)
    for name, tensor in net.state_dict().items():
        assert torch.equal(classifier.state_dict()[name], tensor), name
    with torch.inference_mode():
        logits = net(x[parts["validation"]]).double()
    loss = nn.functional.cross_entropy(logits, y[parts["validation"]])
    assert course[-1]["loss"] == pytest.approx(float(loss), abs=1e-6)


def test_parts_are_whole_groups_and_both_classes(labels: Labels, shards: dict[str, Path]) -> None:
    parts = held_groups(labels)
    ids = [name for path in shards.values() for b, _ in EmbeddingFile(path).parts() for name in b]
    groups = {part: {ids[row].split("#")[0] for row in rows} for part, rows in parts.items()}
    assert sorted(row for rows in parts.values() for row in rows) == list(range(len(ids)))
    assert not groups["training"] & groups["validation"]
    assert not groups["test"] & (groups["training"] | groups["validation"])


def test_a_pool_has_every_row_once_and_no_more_than_its_bytes(data: Embedded) -> None:
    rows = np.flatnonzero(np.arange(len(data.viral)) % 3 > 0)
    small = 4 * data.dim * 256
    met, rng = [], np.random.default_rng(0)
    many = data.sources * 4, data.places * 4
    fourfold = Embedded(*many, data.dim, np.tile(data.viral, 4))
    index = np.concatenate([rows + n * len(data.viral) for n in range(4)])
    for x, viral, order in fourfold.pools(index, rng, small):
        assert len(x) == len(viral) == len(order) <= 256
        assert sorted(order) == list(range(len(x)))
        met.append(x)
    assert len(met) > 1
    expected = data.rows(rows)
    np.testing.assert_array_equal(
        np.sort(np.concatenate(met), axis=0), np.sort(np.concatenate([expected] * 4), axis=0)
    )


def test_training_stops_when_the_validation_part_gets_no_better_and_keeps_the_best(
    data: Embedded, labels: Labels
) -> None:
    parts = held_groups(labels)
    recipe = replace(QUICK, epochs=60, patience=3, watched="loss", learning_rate=0.05)
    classifier, course = fit(data, parts, recipe, 0, "cpu")
    losses = [epoch["loss"] for epoch in course]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 60
    again, _ = fit(data, parts, replace(recipe, epochs=best + 1), 0, "cpu")
    last, _ = fit(data, parts, replace(recipe, kept="last"), 0, "cpu")
    same = [
        torch.equal(classifier.output_layer.bias, one.output_layer.bias) for one in (again, last)
    ]
    assert same == [True, False]


def test_classes_are_weighed_alike_however_many_frames_they_have() -> None:
    viral = np.array([True] * 30 + [False] * 10)
    other, virus = balanced(viral)
    assert other * 10 == virus * 30 == 20


def test_calibration_mends_scores_that_are_too_sure(data: Embedded) -> None:
    """In place: the model's own softmax gives what the fit says, and the order stays."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.25
    honest = rng.normal(size=4000) + np.where(truth, 1.0, -1.0)  # log-odds 2·x at even classes
    classifier = MLPClassifier(data.dim, 8).eval()
    scale, shift = calibrate(classifier, 5 * honest + 3, truth)
    assert scale == pytest.approx(2 / 5, rel=0.1)
    assert shift == pytest.approx(-3 * 2 / 5, rel=0.15)
    before = MLPClassifier(data.dim, 8).eval()
    torch.manual_seed(0)
    before.load_state_dict(MLPClassifier(data.dim, 8).state_dict())
    rows = np.arange(50)
    odds, changed = (odds_of(one, data, rows) for one in (before, classifier))
    np.testing.assert_allclose(changed, scale * odds + shift, atol=1e-5)


def test_calibration_of_classes_that_part_whole_stays_finite() -> None:
    truth = np.arange(40) < 20
    classifier = MLPClassifier(4, 2).eval()
    scale, _ = calibrate(classifier, np.where(truth, 9.0, -9.0), truth)
    assert 0 < scale < 1
    scale, _ = calibrate(classifier, np.where(truth, -1.0, 1.0), truth)
    assert 0 < scale < 0.1, "the order is never turned round"


@pytest.fixture(scope="module")
def own(fastas: dict[str, Path], pair: Model) -> Model:
    """`own`, trained on FASTA."""
    train_head(
        [fastas["virus"]], [fastas["other"]], pair.folder.parent / "own", pair,
        recipe=QUICK, devices="cpu",
    )  # fmt: skip
    return resolve_model("own", pair.folder.parent)


def test_a_head_refers_to_its_encoders_by_hash_and_copies_none(own: Model, pair: Model) -> None:
    assert {str(path.relative_to(own.folder)) for path in own.folder.rglob("*")} == {
        *("classifier.safetensors", "model.json")
    }
    about = json.loads((own.folder / "model.json").read_text())
    assert about["encoders"] == "pair"
    assert about["weights"].keys() == set(FILES)
    assert own.encoder_weights == pair.weights
    verify(own)
    assert about["training"]["test"]["auc"] > 0.9
    assert about["training"]["recipe"] == json.loads(json.dumps(asdict(QUICK)))


def test_shards_train_the_same_head_as_the_fasta_that_they_are_of(
    own: Model, pair: Model, shards: dict[str, Path]
) -> None:
    out = pair.folder.parent / "from_shards"
    train_head([shards["virus"]], [shards["other"]], out, pair, recipe=QUICK, devices="cpu")
    assert resolve_model(out.name, out.parent).weights == own.weights


def test_predict_with_a_head_gives_the_softmax_of_it_over_the_encoders(
    own: Model, pair: Model, fastas: dict[str, Path], tmp_path: Path
) -> None:
    table = vnp.predict(
        fastas["virus"], "own", models_dir=own.folder.parent, output=tmp_path, devices="cpu"
    )
    assert table["call"].to_pylist().count("virus") > 30
    frames = pq.read_table(tmp_path / "frames.parquet").slice(0, 20)
    halves = [
        encoder.embed(frames[column].to_pylist())
        for encoder, column in (
            (vnp.load_dnabert_s(pair.nucleotide), "nucleotide"),
            (vnp.load_esm2(pair.protein), "protein"),
        )
    ]
    with torch.inference_mode():
        logits = vnp.load_classifier(own.classifier)(torch.from_numpy(np.hstack(halves)))
    np.testing.assert_allclose(
        frames["score_virus"].to_numpy(), logits.softmax(1)[:, 1].numpy(), atol=1e-4
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["model"], summary["weights"]) == ("own", own.weights)


def test_embeddings_of_the_encoders_serve_every_head_on_them(
    own: Model, shards: dict[str, Path], fastas: dict[str, Path], ask: Any, tmp_path: Path
) -> None:
    ask("split", fastas["virus"], "-o", tmp_path / "split")
    table = shards["virus"].with_suffix(".parquet")
    words = ["--frames", table, "--contigs", tmp_path / "split/contigs.parquet"]
    store = ["--model", "own", "--models-dir", own.folder.parent]
    ask("classify", shards["virus"], *words, *store, "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out/summary.json").read_text())["model"] == "own"
    said = ask("embed", table, "-o", shards["virus"], *store, "--device", "cpu")
    assert "is complete already" in said


def test_heads_on_heads_name_the_encoders_first_model(own: Model, shards: dict[str, Path]) -> None:
    out = own.folder.parent / "third"
    train_head([shards["virus"]], [shards["other"]], out, own, recipe=QUICK, devices="cpu")
    assert resolve_model("third", out.parent).lender == own.lender == own.folder.parent / "pair"


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("gone", "uses the encoders of the model 'pair', which is neither in"),
        ("another", r"esm2/model\.safetensors: has sha256 .*, and own was trained on"),
        ("file", r"esm2/model\.safetensors: is missing; import pair again"),
        ("flipped", r"dnabert_s/config\.json: has sha256 .*; import pair again"),
        ("path", r"its 'encoders' is missing or odd"),
    ],
)
def test_a_head_whose_encoders_are_gone_or_others_is_refused(
    harm: str, said: str, own: Model, store: Path, run: Any, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    for name in ("own", "pair"):
        shutil.copytree(store / name, root / name)
    lent = root / "pair"
    match harm:
        case "gone":
            shutil.rmtree(lent)
        case "another":
            esm2 = fair_esm(tmp_path / "other.pt", 1, 32, 4, torch.float32)
            import_model(
                "pair", dnabert_s=store / "pair/dnabert_s", esm2=esm2, models_dir=root, window=9
            )
        case "file":
            (lent / "esm2/model.safetensors").unlink()
        case "flipped":
            (lent / "dnabert_s/config.json").write_text("{}")
        case "path":
            about = json.loads((root / "own/model.json").read_text())
            (root / "own/model.json").write_text(json.dumps({**about, "encoders": "../pair"}))
    with pytest.raises(ModelError, match=said):
        resolve_model("own", root)
    code, _, err = run("models", "verify", "own", "--models-dir", root)
    assert code == 3
    assert len(err.splitlines()) == 1


def test_encoders_alone_embed_but_are_no_model_to_predict_with(
    pair: Model, fastas: dict[str, Path], run: Any, tmp_path: Path
) -> None:
    words = ["--model", "pair", "--models-dir", pair.folder.parent, "--device", "cpu"]
    code, _, err = run("predict", fastas["virus"], "-o", tmp_path / "out", *words)
    assert code == 3
    assert "has encoders alone; make a model of them with `virnucpro train --encoders pair`" in err
    assert not (tmp_path / "out").exists()
    assert "alone" in run("models", "list", *words[2:4])[1]


@pytest.mark.parametrize("dim", [320, 480, 640])
def test_other_sizes_of_esm2_are_imported_and_trained_on(
    dim: int, fastas: dict[str, Path], tmp_path: Path
) -> None:
    """A layer of esm2_t6_8M, t12_35M and t30_150M."""
    save_dnabert_s(tmp_path / "D")
    esm2 = fair_esm(tmp_path / "esm2.pt", 1, dim, 20, torch.float32)
    root = tmp_path / "models"
    model = import_model(
        "small", dnabert_s=tmp_path / "D", esm2=esm2, models_dir=root, window=WINDOW
    )
    assert model.dim == 24 + dim
    files = {}
    for kind in ENDS:
        files[kind] = tmp_path / f"{kind}.fa"
        lines = fastas[kind].read_text().splitlines()[:50]
        files[kind].write_text("".join(f"{line[:150]}\n" for line in lines))
    record = train_head(
        [files["virus"]], [files["other"]], root / "own", model,
        recipe=replace(QUICK, epochs=2), devices="cpu",
    )  # fmt: skip
    assert record["test"]["frames"] > 0
    files["virus"].write_text("\n".join(lines[:4]) + "\n")
    assert vnp.predict(files["virus"], "own", models_dir=root, devices="cpu").num_rows == 2


def test_a_stopped_training_does_not_embed_again(
    fastas: dict[str, Path], pair: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = pair.folder.parent / "stopped"
    files = [fastas["virus"]], [fastas["other"]]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("virnucpro_core.lab.train_head.fit_head", stop)
        with pytest.raises(KeyboardInterrupt):
            train_head(*files, out, pair, recipe=QUICK, devices="cpu")
    assert not (out / "model.json").exists()
    monkeypatch.setattr("virnucpro_core.embedding.engine.run_ranks", stop)
    train_head(*files, out, pair, recipe=QUICK, devices="cpu")
    assert not (out / ".work").exists()


def test_input_that_cannot_train_is_refused_before_anything_is_embedded(
    fastas: dict[str, Path], shards: dict[str, Path], pair: Model, tiny: Model,
    edge_frames: Path, shard: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("virnucpro_core.lab.train_head.embed", None)
    out = pair.folder.parent / "refused"
    few = tmp_path / "few.fa"
    few.write_text(f">one\n{'GCA' * 200}\n")
    cases = {
        "has no viral frames": ([few], [fastas["other"]]),
        "is among virus and other": ([fastas["virus"]], [shards["virus"]]),
        "made with the encoders of 'tiny'": ([shard], [shards["other"]]),
    }
    for said, files in cases.items():
        with pytest.raises(InputError, match=said):
            train_head(*files, out, pair, recipe=QUICK, devices="cpu")
        assert not out.exists()
    twice = [shards["virus"], shards["virus"]]
    with pytest.raises(InputError, match=r"embeds the same frames as .*; give each shard once"):
        train_head(twice, [shards["other"]], out, pair, recipe=QUICK, devices="cpu")


def test_a_place_from_which_the_encoders_are_not_found_is_refused(
    fastas: dict[str, Path], pair: Model, tmp_path: Path
) -> None:
    files = [fastas["virus"]], [fastas["other"]]
    with pytest.raises(InputError, match=r"has to lie beside them; give -o .*/own2"):
        train_head(*files, tmp_path / "own2", pair)
    with pytest.raises(InputError, match="holds the encoders themselves"):
        train_head(*files, pair.folder, pair)
    odd = replace(pair, folder=tmp_path / "an odd name")
    with pytest.raises(InputError, match="cannot be referred to"):
        train_head(*files, tmp_path / "own2", odd)


def flat_file(path: Path, ends: dict[str, str], kind: str, number: int) -> list[SeqRecord]:
    """A GenBank file of records with a gene on each strand, and what lies between them."""
    rng = np.random.default_rng(len(kind))
    records = []
    for n in range(number):
        between = "".join(rng.choice(list("ACGT"), 90))
        genes = [Seq("ATG" + coding(rng, ends[kind], 150) + "TAA") for _ in range(2)]
        bases = genes[0] + between + genes[1].reverse_complement() + "N" * 40 + between
        record = SeqRecord(bases, id=f"NC_{kind}{n}.1", name=f"NC_{kind}{n}")
        record.annotations = {"molecule_type": "DNA", "organism": f"{kind.title()} phage {n}/a"}
        first = len(genes[0]) + 90
        for start, strand, gene in ((0, 1, genes[0]), (first, -1, genes[1])):
            place = FeatureLocation(start, start + len(gene), strand=strand)
            says = {"translation": [str(gene.translate(to_stop=True))]}
            record.features.append(SeqFeature(place, "CDS", qualifiers=says))
        records.append(record)
    SeqIO.write(records, path, "genbank")
    return records


def test_frames_of_a_genbank_file_are_those_that_match_its_proteins(tmp_path: Path) -> None:
    """Against the original's rule, read naively, on the same sequences as FASTA."""
    records = flat_file(tmp_path / "a.gb", ENDS, "virus", 5)
    assert is_genbank(tmp_path / "a.gb")
    (tmp_path / "a.fa").write_text("".join(f">{r.id}\n{r.seq}\n" for r in records))
    assert not is_genbank(tmp_path / "a.fa")
    translate_genbank([tmp_path / "a.gb"], tmp_path / "gb.parquet", 100)
    translate([tmp_path / "a.fa"], tmp_path / "fa.parquet", 100, tmp_path / "fa")
    chunks = {c.id: c.sequence for c in read_fasta([tmp_path / "fa/chunked100.fa"])}
    proteins = {r.id: [f.qualifiers["translation"][0] for f in r.features] for r in records}
    expected = [
        (f"{row['frame']}{row['window']}", row["nucleotide"], row["protein"])
        for row in pq.read_table(tmp_path / "fa.parquet").to_pylist()
        if b"N" not in chunks[row["frame_id"][:-2]]
        and any(row["protein"] in protein for protein in proteins[row["contig"]])
    ]
    found = pq.read_table(tmp_path / "gb.parquet").to_pylist()
    assert [
        (f"{r['frame']}{r['window']}", r["nucleotide"], r["protein"]) for r in found
    ] == expected
    assert {r["frame"][0] for r in found} == {"F", "R"}
    assert 0 < len(found) < pq.read_metadata(tmp_path / "fa.parquet").num_rows
    assert found[0]["contig"] == "Virus_phage_0_a#NC_virus0.1"


def test_a_head_is_trained_on_genbank_files(
    pair: Model, ask: Callable[..., str], tmp_path: Path
) -> None:
    words: list[object] = ["train", "--encoders", "pair", "--models-dir", pair.folder.parent]
    for kind in ENDS:
        flat_file(tmp_path / f"{kind}.gbff", ENDS, kind, 40)
        words += [f"--{kind}", tmp_path / f"{kind}.gbff"]
    out = pair.folder.parent / "flat"
    ask(*words, "-o", out, "--device", "cpu")
    training = json.loads((out / "model.json").read_text())["training"]
    assert training["test"]["auc"] > 0.8
    assert [one["name"] for one in training["files"]] == ["virus.gbff", "other.gbff"]


@pytest.mark.parametrize("harm", ["cut", "protein", "bare", "twice"])
def test_a_genbank_file_that_is_none_or_damaged_is_refused(harm: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gb"
    records = flat_file(path, ENDS, "virus", 2)
    said = "no GenBank file of nucleotides, or damaged"
    match harm:
        case "cut":
            path.write_text(path.read_text()[:-200])
        case "protein":
            record = SeqRecord(Seq("MKV"), id="P1", annotations={"molecule_type": "protein"})
            SeqIO.write([record], path, "genbank")
        case "twice":
            SeqIO.write([records[0], records[0]], path, "genbank")
            said = "comes twice"
        case "bare":
            record = SeqRecord(Seq(None, 500), id="B1", annotations={"molecule_type": "DNA"})
            SeqIO.write([record], path, "genbank")
            assert translate_genbank([path], tmp_path / "f.parquet", 100) == 0
            return
    with pytest.raises(InputError, match=said):
        translate_genbank([path], tmp_path / "f.parquet", 100)
    assert not (tmp_path / "f.parquet").exists()
