"""Training makes a whole model folder out of FASTA, and the shipped one is what its record says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import assert_refused, virnucpro
from tiny import MINI, SMALL, coding

import virnucpro_core as vnp
from virnucpro_core.lab.augment import Batches, read_frames
from virnucpro_core.lab.card import NOTES
from virnucpro_core.lab.corpus import PARTS, Corpus, group_of, letters, part_of, sketch
from virnucpro_core.lab.evaluate import evaluate
from virnucpro_core.lab.heldout import (
    Labelled,
    call_windows,
    conservative,
    figures,
    fit_rule,
    found_at,
    frames_of,
    roc_auc,
)
from virnucpro_core.lab.recipe import MINI as RECIPE
from virnucpro_core.lab.recipe import Recipe
from virnucpro_core.lab.train import train
from virnucpro_core.models.store import resolve_model, verify
from virnucpro_core.results.calls import WindowCalls
from virnucpro_core.sequences.fasta import Contig
from virnucpro_core.sequences.frames import stop_free_frames
from virnucpro_core.sequences.tokens import ESM_ALPHABET, NucleotideTokenizer


@pytest.fixture(scope="module")
def corpus(fastas: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    return Corpus.write(path, [fastas["virus"]], [fastas["other"]])


def run(fastas: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    return train(
        [fastas["virus"]], [fastas["other"]], out, window=300, device="cpu", recipe=SMALL, **options
    )


def test_training_makes_a_model_that_tells_unseen_groups_apart(
    fastas: dict[str, Path], tmp_path: Path
) -> None:
    record = run(fastas, tmp_path / "models/own")
    assert record["test"]["windows"]["auc"] > 0.9
    model = resolve_model("own", tmp_path / "models")
    verify(model)
    stored = json.loads((model.folder / "model.json").read_text())["training"]
    assert stored == json.loads(json.dumps(record))
    assert vnp.load_dnabert_s(model.nucleotide).embed(["ACGTACGT"]).shape == (1, 16)
    assert vnp.load_esm2(model.protein).embed(["MKT"]).shape == (1, 16)
    assert vnp.load_classifier(model.classifier).input_dim == model.dim == 32
    test = Labelled.test_part([fastas["virus"]], [fastas["other"]], SMALL.contigs)
    assert evaluate(model, test) == record["test"]


def test_the_same_seed_trains_the_same_model(fastas: dict[str, Path], tmp_path: Path) -> None:
    weights = []
    for name, seed, workers in (("a", 1, 0), ("b", 1, 2), ("c", 2, 0)):
        run(fastas, tmp_path / name, seed=seed, workers=workers)
        weights.append(resolve_model(name, tmp_path).weights)
    assert weights[0] == weights[1] != weights[2]


def test_the_threshold_lets_the_share_asked_for_of_others_be_called() -> None:
    rng = np.random.default_rng(0)
    text = coding(rng, "GC", 200).encode()
    contigs = [Contig(str(n), "", text) for n in range(200)]
    sample = Labelled(contigs, frozenset(map(str, range(100))))
    frames = frames_of(sample, 300)
    odds = rng.normal(size=len(frames["contig"]))

    def called(shift: float) -> WindowCalls:
        virus = 1 / (1 + np.exp(-odds - shift))
        return call_windows(sample, 300, frames, np.stack([1 - virus, virus], 1).astype("f4"))

    for false in (0.05, 0.3):
        calls = called(conservative(sample, called(0.0), false))
        found = figures(sample, calls)["windows"]
        assert 1 - found["specificity"] == pytest.approx(false, abs=0.011)
        found = figures(sample, calls, fit_rule(sample, calls, false))["contigs"]
        assert 1 - found["specificity"] == pytest.approx(false, abs=0.011)


def test_a_rule_fitted_on_short_contigs_too_ranks_them_by_their_one_window() -> None:
    rng = np.random.default_rng(0)

    def part(windows: int, sign: float) -> tuple[Labelled, WindowCalls]:
        contigs = [Contig(str(n), "", b"ACG" * 100 * windows) for n in range(200)]
        sample = Labelled(contigs, frozenset(map(str, range(100))))
        calls = WindowCalls.of(np.full(200, 300 * windows), 300)
        odds = rng.normal(sign * (2.0 * sample.truth[calls.contig] - 1))
        virus = 1 / (1 + np.exp(-odds))
        every = np.zeros(len(odds), np.bool_)
        scores = np.stack([1 - virus, virus], 1).astype("f4")
        calls.add(calls.contig, calls.number, scores, every)
        return sample, calls

    long, short = part(4, 1.0), part(1, -1.0)
    alone, both = fit_rule(*long, 0.05), fit_rule(*long, 0.05, short)
    truth = short[0].truth
    assert roc_auc(truth, alone.probability(short[1].features())) < 0.3
    assert roc_auc(truth, both.probability(short[1].features())) > 0.7
    called = both.probability(long[1].features())[~long[0].truth] >= both.call_at
    assert called.mean() == pytest.approx(0.05, abs=0.011)


def test_frames_read_for_training_are_the_pipelines_own() -> None:
    rng = np.random.default_rng(0)
    for width in (9, 30, 61, 200):
        windows = rng.integers(0, 4, (40, width), np.uint8)
        contigs = [Contig(str(n), "", letters(row)) for n, row in enumerate(windows)]
        frames = stop_free_frames(contigs, width, runs=True).to_pydict()
        columns = (frames["contig"], frames["nucleotide"], frames["protein"])
        known = set(zip(*columns, strict=True))
        met = set()
        for _ in range(60):
            for reading in read_frames(windows, rng):
                columns_of = (reading.window, reading.bases, reading.residues, reading.run)
                for n, bases, ids, (begin, end) in zip(*columns_of, strict=True):
                    protein = "".join(ESM_ALPHABET[i] for i in ids[begin:end])
                    met.add((str(n), letters(bases).decode(), protein))
        assert met == known


def test_batches_are_the_same_whether_made_here_or_by_processes(corpus: Corpus) -> None:
    tokenize = NucleotideTokenizer(resolve_model("mini").nucleotide / "tokenizer.json")
    batches = Batches(corpus, 300, tokenize, 32, MINI.augmentation, 0)
    here, there = (list(batches.stream(6, workers)) for workers in (0, 2))
    for one, other in zip(here, there, strict=True):
        for mine, theirs in zip(
            (*one.nucleotide, *one.protein, *one[2:]),
            (*other.nucleotide, *other.protein, *other[2:]),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_a_batch_hides_halves_and_tokens_and_labels_what_is_shuffled_as_other(
    corpus: Corpus,
) -> None:
    tokenize = NucleotideTokenizer(resolve_model("mini").nucleotide / "tokenizer.json")
    batch = Batches(corpus, 300, tokenize, 256, replace(MINI.augmentation, shuffled=0.2), 0)[0]
    none = batch.nucleotide.lengths == 2, batch.protein.lengths == 2
    assert 0.1 < none[0].mean() < 0.3 < 0.5 > none[1].mean() > 0.1
    assert not (none[0] & none[1]).any()
    for half in (batch.nucleotide, batch.protein):
        assert len(half.at) / len(half.ids) == pytest.approx(MINI.augmentation.mask, abs=0.04)
        assert (half.ids[half.at] != half.truth).all()
    made_up = batch.kind < 0
    assert made_up.any()
    assert not batch.viral[made_up].any()
    assert (batch.viral[~made_up] == corpus.viral[batch.kind[~made_up]]).all()


def test_a_corpus_gives_back_the_known_bases_of_its_files(tmp_path: Path) -> None:
    text = coding(np.random.default_rng(0), "ACGT", 101)
    (tmp_path / "virus.fa").write_text(f">v#1 phage\n{text[:150]}nRy{text[150:].lower()}\n")
    (tmp_path / "other.fa").write_text(f">o#1 of two words\n{text}\n>o#2 plasmid\nACGT\n")
    corpus = Corpus.write(tmp_path / "corpus", [tmp_path / "virus.fa"], [tmp_path / "other.fa"])
    assert [letters(corpus.codes(n)).decode() for n in range(3)] == [text[:150], text[150:], text]
    assert [corpus.kinds[kind] for kind in corpus.kind] == ["phage", "phage", "other"]
    begin = np.array([5, 0, 17])
    for row, n in zip(corpus.windows(np.arange(3), begin, 61), range(3), strict=True):
        np.testing.assert_array_equal(row, corpus.codes(n, int(begin[n]), int(begin[n]) + 61))


def test_what_shares_kmers_with_a_part_held_out_is_in_no_part(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {part: next(n for n in map(str, range(999)) if part_of(n) == part) for part in PARTS}
    apart, held = (coding(rng, "ACGT", 2000) for _ in range(2))
    flipped = held[600:1800][::-1].translate(str.maketrans("ACGT", "TGCA"))
    records = {
        f"{names['test']}#1": held,
        f"{names['validation']}#1": coding(rng, "ACGT", 2000),
        f"{names['training']}#1": apart,
        f"{names['training']}#2": apart[:3000] + flipped,  # another strand, 30 % of its k-mers
        f"{names['training']}0#1": apart,
    }
    (tmp_path / "a.fa").write_text("".join(f">{name}\n{text}\n" for name, text in records.items()))
    (tmp_path / "b.fa").write_text(f">b\n{coding(rng, 'ACGT', 100)}\n")
    corpus = Corpus.write(tmp_path / "corpus", [tmp_path / "a.fa"], [tmp_path / "b.fa"])
    assert corpus.part[:4].tolist() == [0, 1, -1, -1]  # the whole group goes


def test_a_sketch_is_the_same_on_both_strands_and_of_whole_kmers() -> None:
    codes = np.random.default_rng(0).integers(0, 4, 4000, np.uint8)
    words = sketch(codes)
    assert sorted(words) == sorted(sketch(3 - codes[::-1]))
    assert 0.03 < len(words) / (len(codes) - 30) < 0.1
    assert set(sketch(codes[500:3000])) <= set(words)
    assert not len(sketch(codes[:30]))


def test_contigs_drawn_are_half_viral_and_of_the_part_alone(corpus: Corpus) -> None:
    sample = Labelled.drawn(corpus, "validation", 200)
    assert sample.truth.mean() == pytest.approx(0.5, abs=0.12)
    assert {part_of(contig.id) for contig in sample.contigs} == {"validation"}
    assert all(500 <= len(contig.sequence) <= 600 for contig in sample.contigs)


def test_more_sequences_are_for_training_alone(fastas: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "genes.fa").write_text(
        "".join(f">g{n}#1 gene\n{coding(np.random.default_rng(n), 'AT', 99)}\n" for n in range(50))
    )
    corpus = Corpus.write(
        tmp_path / "corpus", [fastas["virus"]], [fastas["other"]], [tmp_path / "genes.fa"]
    )
    genes = corpus.kind == corpus.kinds.index("gene")
    assert (corpus.part[genes] == list(PARTS).index("training")).all()
    assert corpus.measured.tolist() == [True, True, False]
    chances = corpus.chances("training")
    assert chances[corpus.viral[corpus.kind]].sum() == pytest.approx(0.5)
    assert 0 < chances[genes].sum() < 0.25


def test_training_refuses_data_that_leave_a_part_without_one_class(tmp_path: Path) -> None:
    for name in ("virus", "other"):
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{'GCA' * 200}\n")
    with pytest.raises(vnp.InputError, match=r"part, .* has no .* sequences of more groups"):
        run({name: tmp_path / f"{name}.fa" for name in ("virus", "other")}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_training_refuses_a_kind_of_both_classes(tmp_path: Path) -> None:
    for name in ("virus", "other"):
        (tmp_path / f"{name}.fa").write_text(f">{name} plasmid\n{'GCA' * 200}\n")
    with pytest.raises(vnp.InputError, match="'plasmid' is both"):
        run({name: tmp_path / f"{name}.fa" for name in ("virus", "other")}, tmp_path / "out")


def test_recipe_with_a_changed_entry_is_read_and_an_odd_one_refused(tmp_path: Path) -> None:
    path, text = tmp_path / "own.toml", RECIPE.read_text()
    path.write_text(text.replace("steps = 14000", "steps = 7").replace("noise = 0.05", "noise = 0"))
    own = Recipe.read(path)
    assert own == replace(MINI, steps=7, augmentation=replace(MINI.augmentation, noise=0))
    for old, new, said in (
        ("steps = 14000", "", "lacks the entry 'steps'"),
        ("steps = 14000", "steps = 0", "steps = 0 is no value"),
        ("noise = 0.05", "noise = -1", "noise = -1 is no value"),
        ("noise = 0.05", "noise = inf", "noise = inf is no value"),
        ("hidden = 256", "hidden = 256\nwidth = 3", "unknown entry 'width'"),
        ("[3, 192, 6]", "[3, 192]", "is no value"),
        ("hidden", "= hidden", "is no recipe"),
    ):
        path.write_text(text.replace(old, new, 1))
        with pytest.raises(vnp.InputError, match=said):
            Recipe.read(path)
    with pytest.raises(vnp.InputError, match="is no recipe"):
        Recipe.read(tmp_path / "none.toml")


def test_evaluate_without_frames_of_one_class_exits_2(tmp_path: Path) -> None:
    (tmp_path / "virus.fa").write_text(f">virus\n{'GCA' * 200}\n")
    (tmp_path / "other.fa").write_text(">other\nAC\n")
    files = ["--virus", tmp_path / "virus.fa", "--other", tmp_path / "other.fa"]
    for options, said in (([], "has no stop-free frame of"), (["--test-part"], "has no")):
        run = virnucpro("evaluate", *files, "--model", "mini", *options)
        assert_refused(run, 2, f"{said} .* more groups")


def test_cli_train_on_an_unknown_device_exits_2(fastas: dict[str, Path], tmp_path: Path) -> None:
    files = ["--virus", fastas["virus"], "--other", fastas["other"], "-o", tmp_path / "model"]
    assert_refused(virnucpro("train", *files, "--device", "gpu"), 2, "device 'gpu' is not known")


def test_cli_train_with_an_odd_recipe_exits_2(fastas: dict[str, Path], tmp_path: Path) -> None:
    files = ["--virus", fastas["virus"], "--other", fastas["other"], "-o", tmp_path / "model"]
    (tmp_path / "own.toml").write_text(RECIPE.read_text().replace("steps = 14000", ""))
    run = virnucpro("train", *files, "--recipe", tmp_path / "own.toml")
    assert_refused(run, 2, "lacks the entry 'steps'")


def test_a_group_is_in_one_part_whatever_its_version_and_fragment() -> None:
    ids = [f"NC_{n:06d}" for n in range(2000)]
    parts = {name: part_of(name) for name in ids}
    for name, part in parts.items():
        assert part_of(f"{name}.2#3k#1#3000") == part_of(f"{name}#3k#3001#6000") == part
        assert group_of(f"{name}.2#3k") == name
    for part, share in PARTS.items():
        assert sum(p == part for p in parts.values()) / len(ids) == pytest.approx(share, abs=0.03)


def test_roc_auc_counts_ties_half() -> None:
    truth = np.array([True, True, False, False])
    assert roc_auc(truth, np.array([0.9, 0.8, 0.2, 0.1])) == 1
    assert roc_auc(truth, np.array([0.5, 0.5, 0.5, 0.5])) == 0.5
    assert roc_auc(truth, np.array([0.9, 0.3, 0.3, 0.1])) == 0.875
    assert np.isnan(roc_auc(truth[:2], np.array([0.9, 0.8])))


def test_found_at_counts_positives_above_the_highest_negatives() -> None:
    truth = np.array([True] * 4 + [False] * 20)
    score = np.array([30, 18.5, 17.5, 0, *range(20)], np.float64)
    assert found_at(truth, score, 0.05) == 0.5
    assert found_at(truth, score, 0.10) == 0.75


def test_mini_is_small_and_what_its_record_says() -> None:
    mini = resolve_model("mini")
    verify(mini)
    files = [path for path in mini.folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10_000_000
    known = {*mini.weights, "model.json", NOTES}
    assert {str(path.relative_to(mini.folder)) for path in files} == known
    record = json.loads((mini.folder / "model.json").read_text())["training"]
    assert record["recipe"] == json.loads(json.dumps(asdict(MINI)))
    assert vnp.load_classifier(mini.classifier).input_dim == mini.dim


@pytest.mark.slow
def test_mini_knows_viruses_of_groups_that_it_never_saw(shared: Path) -> None:
    paths = [shared / "data/corpus" / f"{name}.fa.xz" for name in ("virus", "other")]
    if not all(path.exists() for path in paths):
        pytest.skip(f"{paths[0].parent} holds no corpus")
    sample = Labelled.test_part(paths[:1], paths[1:])
    assert {part_of(contig.id) for contig in sample.contigs} == {"test"}
    mini = resolve_model("mini")
    figures = evaluate(mini, sample)
    recorded = json.loads((mini.folder / "model.json").read_text())["training"]["test"]
    for level in ("windows", "contigs"):
        assert figures[level]["auc"] == pytest.approx(recorded[level]["auc"], abs=2e-3)


def test_mini_takes_random_sequences_for_no_virus() -> None:
    mini, rng = resolve_model("mini"), np.random.default_rng(0)
    lengths = [length for length in (10, 50, 100, 200, 500) for _ in range(60)]
    texts = ["".join(rng.choice(list("ACGT"), length)) for length in lengths]
    contigs = [Contig(str(n), "random", text.encode()) for n, text in enumerate(texts)]
    known = [Contig(name, "", b"GCA" * 100) for name in ("virus", "other")]
    sample = Labelled([*contigs, *known], frozenset({"virus"}))
    assert evaluate(mini, sample)["contigs"]["called"]["random"] <= 0.02


def test_contig_among_virus_and_other_is_refused(tmp_path: Path) -> None:
    for name in ("virus.fa", "other.fa"):
        (tmp_path / name).write_text(">same\nACGT\n")
    with pytest.raises(vnp.InputError, match="contig 'same' is among virus and other"):
        Labelled.read([tmp_path / "virus.fa"], [tmp_path / "other.fa"])
