"""The training of a classifier on embeddings: its loop, its parts, its calibration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from virnucpro_core.embedding.shards import EmbeddingFile
from virnucpro_core.lab.embedded import Embedded, Given, Labels, held_frames, held_groups
from virnucpro_core.lab.head import ORIGINAL, HeadRecipe, balanced, calibrate, fit, odds_of
from virnucpro_core.models.classifier import MLPClassifier

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = HeadRecipe(hidden=16, batch=32, epochs=8)


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
