"""Training makes a whole model folder out of FASTA, and the shipped one is what its record says."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import assert_refused, virnucpro

import virnucpro_core as vnp
from virnucpro_core.augment import Batches, Composition, varied_frames
from virnucpro_core.heldout import PARTS, Labelled, accession, evaluate, part_of, roc_auc
from virnucpro_core.models.store import resolve_model, verify
from virnucpro_core.sequences.tokens import NucleotideTokenizer
from virnucpro_core.train import Recipe, train

SMALL = Recipe(
    layers=1, dim=16, heads=2, hidden=8, vocabulary=64, warmup_steps=2, steps=30, warmup_batch=32,
    batch=32, learning_rate=1e-2, average=0.8, components=8,
)  # fmt: skip
ENDS = {"virus": "AT", "other": "GC"}
"""Third bases of the codons: nothing else tells the made-up viruses from the others."""


@pytest.fixture(scope="module")
def fastas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Thirty contigs of 600 bases of each kind, whose first frame has no stop codon."""
    rng = np.random.default_rng(0)
    paths = {}
    for kind, ends in ENDS.items():
        paths[kind] = tmp_path_factory.mktemp("fasta") / f"{kind}.fa"
        records = []
        for number in range(30):
            starts = rng.choice(["AC", "CA", "CC", "GA", "GC", "GT", "CT", "AT"], 200)
            codons = np.char.add(starts, rng.choice(list(ends), 200))
            records.append(f">{kind}_{number}.1#a\n{''.join(codons)}\n")
        paths[kind].write_text("".join(records))
    return paths


def run(fastas: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    return train(
        [fastas["virus"]], [fastas["other"]], out, window=300, device="cpu", recipe=SMALL, **options
    )


def test_training_makes_a_model_that_tells_unseen_accessions_apart(
    fastas: dict[str, Path], tmp_path: Path
) -> None:
    record = run(fastas, tmp_path / "models/own", unlabelled=[])
    assert record["test"]["windows"]["auc"] > 0.9
    model = resolve_model("own", tmp_path / "models")
    verify(model)
    assert json.loads((model.folder / "model.json").read_text())["training"] == record
    assert vnp.load_dnabert_s(model.nucleotide).embed(["ACGTACGT"]).shape == (1, 16)
    assert vnp.load_esm2(model.protein).embed(["MKT"]).shape == (1, 16)
    assert vnp.load_classifier(model.classifier).input_dim == model.dim == 32
    test = Labelled.read([fastas["virus"]], [fastas["other"]]).part("test")
    assert evaluate(model, test) == record["test"]


def test_the_same_seed_trains_the_same_model(fastas: dict[str, Path], tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(fastas, tmp_path / name, seed=seed)
        weights.append(resolve_model(name, tmp_path).weights)
    assert weights[0] == weights[1] != weights[2]


def test_composition_counts_the_words_of_each_text_alone() -> None:
    texts = ["ACGTACG", "CCCNCC", "AC", "GATTACA"]
    words = Composition(b"ACGT", 3, texts, 2)
    share = np.zeros((4, 64))
    for row, text in enumerate(texts):
        kinds = [text[i : i + 3] for i in range(len(text) - 2)]
        for kind in (k for k in kinds if "N" not in k):
            share[row, int("".join(str("ACGT".index(b)) for b in kind), 4)] += 1
    share /= np.maximum(1, share.sum(1, keepdims=True))
    np.testing.assert_allclose(words.mean, np.sqrt(share).mean(0), rtol=1e-6)
    components = words(texts)
    assert components.shape == (4, 2)
    np.testing.assert_allclose((components**2).mean(0), 1, rtol=1e-4)
    # a text's components do not depend on what it is counted with
    np.testing.assert_allclose(words(texts[3:]), components[3:], rtol=1e-5, atol=1e-6)


def test_batches_are_the_same_whether_made_here_or_by_processes(fastas: dict[str, Path]) -> None:
    sample = Labelled.read([fastas["virus"]], [fastas["other"]])
    rng = np.random.default_rng(0)
    frames = varied_frames(sample, 300, rng)
    words = (
        Composition(b"ACGT", 2, frames.nucleotide, 4),
        Composition(b"GAV", 1, frames.protein, 2),
    )
    tokenize = NucleotideTokenizer(resolve_model("mini").nucleotide / "tokenizer.json")
    batches = Batches(sample, 300, tokenize, words, 16, 0.05, 0.1, (0, 1))
    number = 2 * len(batches.epoch(0))  # so that they come out of several epochs
    made = []
    for workers in (0, 2):
        with closing(batches.stream(workers)) as source:
            made.append([next(source) for _ in range(number)])
    for one, other in zip(*made, strict=True):
        for mine, theirs in zip(one[:3], other[:3], strict=True):
            for a, b in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(one.viral, other.viral)
        np.testing.assert_array_equal(one.weight, other.weight)


def test_training_refuses_data_that_leave_a_part_without_one_class(tmp_path: Path) -> None:
    for name in ("virus", "other"):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{'GCA' * 200}\n")
    with pytest.raises(vnp.InputError, match=r"has no stop-free frame of .* more accessions"):
        run({name: tmp_path / f"{name}.fa" for name in ("virus", "other")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [[], ["--test-part"]])
def test_evaluate_without_frames_of_one_class_exits_2(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "virus.fa").write_text(f">virus\n{'GCA' * 200}\n")
    (tmp_path / "other.fa").write_text(">other\nAC\n")
    files = ["--virus", tmp_path / "virus.fa", "--other", tmp_path / "other.fa"]
    run = virnucpro("evaluate", *files, "--model", "mini", *options)
    assert_refused(run, 2, "has no stop-free frame of .* more accessions")


def test_cli_train_on_an_unknown_device_exits_2(fastas: dict[str, Path], tmp_path: Path) -> None:
    files = ["--virus", fastas["virus"], "--other", fastas["other"], "-o", tmp_path / "model"]
    assert_refused(virnucpro("train", *files, "--device", "gpu"), 2, "device 'gpu' is not known")


def test_an_accession_is_in_one_part_whatever_its_version_and_fragment() -> None:
    ids = [f"NC_{n:06d}" for n in range(2000)]
    parts = {name: part_of(name) for name in ids}
    for name, part in parts.items():
        assert part_of(f"{name}.2#3k#1#3000") == part_of(f"{name}#3k#3001#6000") == part
    for part, share in PARTS.items():
        assert sum(p == part for p in parts.values()) / len(ids) == pytest.approx(share, abs=0.03)


def test_roc_auc_counts_ties_half() -> None:
    truth = np.array([True, True, False, False])
    assert roc_auc(truth, np.array([0.9, 0.8, 0.2, 0.1])) == 1
    assert roc_auc(truth, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert roc_auc(truth, np.array([0.9, 0.3, 0.3, 0.1])) == 0.875
    assert np.isnan(roc_auc(truth[:2], np.array([0.9, 0.8])))


def test_mini_is_small_and_what_its_record_says() -> None:
    mini = resolve_model("mini")
    verify(mini)
    files = [path for path in mini.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    assert {str(path.relative_to(mini.folder)) for path in files} == {*mini.weights, "model.json"}
    record = json.loads((mini.folder / "model.json").read_text())["training"]
    assert Recipe(**record["recipe"]) == Recipe()
    assert vnp.load_classifier(mini.classifier).input_dim == mini.dim


@pytest.mark.slow
def test_mini_knows_viruses_of_accessions_that_it_never_saw(shared: Path) -> None:
    paths = [shared / "data" / f"train_{kind}.fa.gz" for kind in ("virus", "host")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"{paths[0].parent} holds no training data")
    sample = Labelled.read(paths[:1], paths[1:])
    parts = {name: {accession(c.id) for c in sample.part(name).contigs} for name in PARTS}
    assert not parts["test"] & (parts["training"] | parts["validation"])
    mini = resolve_model("mini")
    figures = evaluate(mini, sample.part("test"))
    assert figures["windows"]["auc"] >= 0.80
    recorded = json.loads((mini.folder / "model.json").read_text())["training"]["test"]
    for level in ("windows", "contigs"):
        assert figures[level]["auc"] == pytest.approx(recorded[level]["auc"], abs=2e-3)


def test_contig_among_virus_and_other_is_refused(tmp_path: Path) -> None:
    for name in ("virus.fa", "other.fa"):
        (tmp_path / name).write_text(">same\nACGT\n")
    with pytest.raises(vnp.InputError, match="contig 'same' is among virus and other"):
        Labelled.read([tmp_path / "virus.fa"], [tmp_path / "other.fa"])
