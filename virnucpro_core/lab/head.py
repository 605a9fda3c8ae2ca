"""Train a classifier on the embeddings of encoders that stay as they are.

The original's training is `ORIGINAL`, read in its repository (Li-Jing-1997/VirNucPro): train.py has
the loss (CrossEntropyLoss, unweighted), SGD at 0.0002 with momentum 0.9, StepLR of 0.85 every 10
epochs, batches of 32, at most 200 epochs, the initial weights (`init_weights`), and the end after 5
epochs in which the loss on a random tenth of the frames was no less than the least before. The
weights that it means to go back to then are the living ones (`model.state_dict()` is no copy), so
it keeps the last. features_extract.py gives it as many other frames as viral ones; give as many.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from virnucpro_core.errors import InputError
from virnucpro_core.lab.embedded import Embedded
from virnucpro_core.lab.heldout import roc_auc
from virnucpro_core.lab.metrics import FIGURES, Items
from virnucpro_core.lab.recipe import is_amount, read_entries
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.results.calls import BoolArray
from virnucpro_core.sequences.windows import Int64Array

logger = logging.getLogger("virnucpro.train")

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class HeadRecipe:
    """All that, with data and seed, determines a classifier."""

    hidden: int = 512
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9  # of SGD
    weight_decay: float = 0.01  # of AdamW
    batch: int = 256
    epochs: int = 200
    rate_epochs: int = 10  # after which the rate falls to `rate_falls` of itself
    rate_falls: float = 0.85
    held_out: Literal["groups", "frames"] = "groups"
    weighed: bool = True  # classes count alike, however many frames they have
    watched: Literal["auc", "loss"] = "auc"  # on the validation part
    patience: int = 5  # epochs without a better one
    kept: Literal["best", "last"] = "best"  # epoch
    calibrated: bool = True

    @classmethod
    def read(cls, path: Path | None) -> HeadRecipe:
        """From a TOML file of some of these entries; None is the default, `original` ORIGINAL.

        InputError for what cannot be read, an unknown entry, or a value that is of no use.
        """
        if path is None or (str(path) == "original" and not path.exists()):
            return cls() if path is None else ORIGINAL
        about = read_entries(path)
        kinds = get_type_hints(cls)
        for name, value in about.items():
            if name not in kinds:
                raise InputError(
                    f"{path}: has an unknown entry {name!r}; known: {', '.join(kinds)}."
                )
            choices = get_args(kinds[name])
            fits = {
                int: type(value) is int and value > 0,
                float: is_amount(value),
                bool: type(value) is bool,
            }.get(kinds[name], value in choices)
            if not fits:
                wanted = " or ".join(choices) or {bool: "true or false"}.get(
                    kinds[name], "a number"
                )
                raise InputError(f"{path}: {name} is {value!r:.40}; give {wanted}.")
        return cls(**about)


ORIGINAL = HeadRecipe(
    optimizer="sgd", learning_rate=2e-4, batch=32, held_out="frames", weighed=False,
    watched="loss", kept="last", calibrated=False,
)  # fmt: skip


def new_classifier(dim: int, hidden: int) -> MLPClassifier:
    """With the original's initial weights, drawn as it draws them."""
    classifier = MLPClassifier(dim, hidden)
    nn.init.xavier_uniform_(classifier.hidden_layer.weight)
    nn.init.xavier_uniform_(classifier.output_layer.weight)
    return classifier


@torch.inference_mode()
def odds_of(classifier: MLPClassifier, data: Embedded, rows: Int64Array) -> Float64Array:
    """Log-odds of virus, float64 (N)."""
    classifier.eval()
    device = classifier.hidden_layer.weight.device
    parts = (classifier(torch.from_numpy(x).to(device)).double().cpu() for x in data.blocks(rows))
    return np.concatenate([(logits[:, 1] - logits[:, 0]).numpy() for logits in parts])


def balanced(viral: BoolArray) -> Float64Array:
    """Weights of classes (other, virus) with which both count alike."""
    counts = np.array([(~viral).sum(), viral.sum()], np.float64)
    weights: Float64Array = len(viral) / (2 * counts)
    return weights


def loss_of(viral: BoolArray, odds: Float64Array) -> float:
    """Mean cross-entropy."""
    return float(np.logaddexp(0, np.where(viral, -odds, odds)).mean())


def fit(
    data: Embedded, parts: dict[str, Int64Array], recipe: HeadRecipe, seed: int, device: str
) -> tuple[MLPClassifier, list[dict[str, float]]]:
    """Train on the `training` rows, stop by the `validation` rows; also what each epoch gave."""
    torch.manual_seed(seed)
    classifier = new_classifier(data.dim, recipe.hidden).to(device)
    parameters = classifier.parameters()
    optimizer: torch.optim.Optimizer
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, recipe.learning_rate, recipe.momentum)
    else:
        optimizer = torch.optim.AdamW(
            parameters, recipe.learning_rate, weight_decay=recipe.weight_decay
        )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, recipe.rate_epochs, recipe.rate_falls)
    training, validation = parts["training"], parts["validation"]
    weight = None
    if recipe.weighed:
        weight = torch.from_numpy(balanced(data.viral[training])).float().to(device)
    truth = data.viral[validation]
    best, waited, state = -np.inf, 0, classifier.state_dict()
    course: list[dict[str, float]] = []
    for epoch in range(1, recipe.epochs + 1):
        classifier.train()
        for x, viral, order in data.pools(training, np.random.default_rng([seed, epoch])):
            values, labels = (torch.from_numpy(a).to(device) for a in (x, viral.astype(np.int64)))
            for first in range(0, len(order), recipe.batch):
                at = torch.from_numpy(order[first : first + recipe.batch]).to(device)
                if len(at) == 1:
                    continue  # a batch norm learns nothing of one row, and refuses it
                loss = F.cross_entropy(classifier(values[at]), labels[at], weight)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        odds = odds_of(classifier, data, validation)
        course.append({"loss": loss_of(truth, odds), "auc": roc_auc(truth, odds)})
        logger.info("epoch %d: validation loss %.4f, AUC %.4f", epoch, *course[-1].values())
        quality = course[-1]["auc"] if recipe.watched == "auc" else -course[-1]["loss"]
        if quality > best:
            best, waited = quality, 0
            if recipe.kept == "best":
                state = copy.deepcopy(classifier.state_dict())
        else:
            waited += 1
            if waited >= recipe.patience:
                break
        schedule.step()
    classifier.load_state_dict(state)
    return classifier.eval(), course


def calibrate(classifier: MLPClassifier, odds: Float64Array, viral: BoolArray) -> list[float]:
    """Scale and shift the log-odds, in the last layer's weights, to what held-out rows say.

    Platt's fit, with his targets, which stay finite where the classes part; both classes count
    alike. Returns the scale, which is positive, and the shift.
    """
    known, truth = torch.from_numpy(odds), torch.from_numpy(viral)
    count = {of: int((truth == of).sum()) for of in (False, True)}
    target = torch.where(truth, (count[True] + 1) / (count[True] + 2), 1 / (count[False] + 2))
    weight = torch.from_numpy(balanced(viral)[viral.astype(np.int64)])
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the scale, shift
    optimizer = torch.optim.LBFGS([line], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(
            line[0].exp() * known + line[1], target.double(), weight
        )
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    scale, shift = float(line.detach()[0].exp()), float(line.detach()[1])
    with torch.no_grad():
        classifier.output_layer.weight.mul_(scale)
        classifier.output_layer.bias.mul_(scale)
        classifier.output_layer.bias[1] += shift
    return [scale, shift]


def figures(viral: BoolArray, odds: Float64Array) -> dict[str, float]:
    """How good scores of frames are, at even classes, for which they are calibrated."""
    probability = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
    items = Items(viral, odds, odds >= 0, probability, np.arange(len(viral)))
    found = items.figures(balanced(viral)[viral.astype(np.int64)])
    return {
        "frames": len(viral),
        "viral": int(viral.sum()),
        **dict(zip(FIGURES, np.round(found, 4).tolist(), strict=True)),
    }


def fit_head(
    data: Embedded, parts: dict[str, Int64Array], recipe: HeadRecipe, seed: int, device: str
) -> tuple[MLPClassifier, dict[str, Any]]:
    """A classifier, calibrated where the recipe says so, on the CPU, and its record."""
    classifier, course = fit(data, parts, recipe, seed, device)
    line = None
    if recipe.calibrated:
        rows = parts["validation"]
        line = calibrate(classifier, odds_of(classifier, data, rows), data.viral[rows])
    found = {
        part: figures(data.viral[rows], odds_of(classifier, data, rows))
        for part, rows in parts.items()
    }
    return classifier.cpu(), {"epochs": course, "calibration": line, **found}
