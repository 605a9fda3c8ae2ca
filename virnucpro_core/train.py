"""Train a small model of VirNucPro's architecture from labelled FASTA: how `mini` was made.

Both encoders start from random weights. They first learn to fill in hidden tokens of all sequences
given, labelled or not, then, with the classifier on top, to tell viral frames from others.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from virnucpro_core.augment import Batch, Batches, ahead, train_tokenizer, varied_frames
from virnucpro_core.errors import InputError
from virnucpro_core.heldout import (
    PARTS,
    Labelled,
    Scored,
    evaluate,
    figures,
    frame_scores,
    frames_of,
    score_windows,
)
from virnucpro_core.models.attention import Layout
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.export import write_dnabert_s, write_esm2, write_weights
from virnucpro_core.models.store import write_model
from virnucpro_core.sequences.fasta import read_fasta
from virnucpro_core.sequences.tokens import NucleotideTokenizer

logger = logging.getLogger("virnucpro.train")

LOOKS = 20
"""How often the validation part is looked at."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule: with data and seed, all that determines a model. Defaults made `mini`."""

    layers: int = 3
    dim: int = 128
    heads: int = 4
    hidden: int = 128  # of the classifier
    vocabulary: int = 1024
    warmup_steps: int = 700  # with hidden tokens alone
    steps: int = 1200  # with labels
    batch: int = 128  # frames
    learning_rate: float = 4e-4
    weight_decay: float = 0.3
    mask: float = 0.15  # mean share of tokens hidden
    noise: float = 0.02  # mean share of letters replaced at random
    dropout: float = 0.2  # of embeddings, before the classifier
    mask_loss: float = 0.2  # weight of filling in, beside the labels
    label_smoothing: float = 0.05
    average: float = 0.995  # decay of the running average of the weights, which is what is kept


class Trainee(nn.Module):
    """The three modules of a model, trained as one."""

    def __init__(self, recipe: Recipe, tokenizer: NucleotideTokenizer, vocabulary: int) -> None:
        super().__init__()
        self.dropout = recipe.dropout
        sizes = (recipe.layers, recipe.dim, recipe.heads)
        self.nucleotide = DNABERTS(vocabulary, *sizes, 2 * recipe.dim, tokenizer=tokenizer)
        self.protein = ESM2(*sizes)
        self.classifier = MLPClassifier(2 * recipe.dim, recipe.hidden)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the frames (B, 2), and the loss of filling in their hidden tokens."""
        pooled, losses = [], []
        for encoder, tokens, truth in (
            (self.nucleotide, batch.nucleotide, batch.nucleotide_truth),
            (self.protein, batch.protein, batch.protein_truth),
        ):
            device = encoder.device
            layout = Layout.of(torch.from_numpy(tokens.lengths), device)
            hidden = encoder(torch.from_numpy(tokens.ids).to(device), layout)
            pooled.append(encoder.pool(hidden, layout))
            at = torch.from_numpy(np.flatnonzero(truth >= 0)).to(device)
            wanted = torch.from_numpy(truth[truth >= 0]).to(device)
            # The embedding's rows double as the output layer; the sum keeps an empty batch at 0.
            scores = F.linear(hidden[at], encoder.embedding.weight)
            losses.append(F.cross_entropy(scores, wanted, reduction="sum") / max(1, len(wanted)))
        embedding = F.dropout(torch.cat(pooled, 1), self.dropout, self.training)
        return self.classifier(embedding), losses[0] + losses[1]


def _optimise(
    trainee: Trainee,
    source: Iterator[Batch],
    recipe: Recipe,
    steps: int,
    loss_of: Callable[[Batch], Tensor],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW for `steps` batches, its rate rising over a twentieth of them, then falling to 0."""
    device = trainee.nucleotide.device.type
    optimizer = torch.optim.AdamW(
        trainee.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    rise = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * n / max(1, steps)))
    )
    for step in range(1, steps + 1):
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = loss_of(next(source))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 10) == 0:
            logger.info("step %d of %d, loss %.3f", step, steps, loss.item())
        after(step)


class _Average:
    """Running average of a trainee's weights, and the best of it seen on the validation part."""

    def __init__(self, trainee: Trainee, decay: float) -> None:
        self.trainee, self.decay = trainee, decay
        self.model = copy.deepcopy(trainee).eval()
        self.auc, self.step = -math.inf, 0
        self.state: dict[str, Tensor] = {}

    def update(self) -> None:
        new = self.trainee.state_dict()
        for name, mine in self.model.state_dict().items():
            if mine.is_floating_point():
                mine.lerp_(new[name], 1 - self.decay)
            else:
                mine.copy_(new[name])

    def offer(self, step: int, auc: float) -> None:
        logger.info("step %d: validation AUC %.4f", step, auc)
        if auc > self.auc:
            self.auc, self.step = auc, step
            self.state = {key: t.detach().clone() for key, t in self.model.state_dict().items()}


def _balance(sample: Labelled, scored: Scored) -> float:
    """What to add to the virus logit so that as many viral windows as others are called right.

    A window is viral when its highest virus score reaches its highest other score; in log-odds,
    when the middle between the greatest and the least of its frames is 0 or more.
    """

    def odds(score: Tensor) -> Tensor:
        return torch.logit(score.double(), eps=1e-9)

    calls = scored.calls
    virus, other = (
        torch.from_numpy(s[calls.called]) for s in (calls.score_virus, calls.score_other)
    )
    middle = ((odds(virus) - odds(other)) / 2).numpy()
    truth = sample.truth[calls.contig[calls.called]]
    at = np.sort(middle)
    sensitivity = 1 - np.searchsorted(np.sort(middle[truth]), at) / truth.sum()
    specificity = np.searchsorted(np.sort(middle[~truth]), at) / (~truth).sum()
    return -float(at[np.argmin(np.abs(sensitivity - specificity))])


def _part(sample: Labelled, name: str, window: int) -> Labelled:
    part = sample.part(name)
    for viral, kind in ((True, "viral"), (False, "other")):
        some = Labelled([c for c in part.contigs if (c.id in part.viral) == viral], part.viral)
        if not frames_of(some, window)["contig"]:
            raise InputError(
                f"the {name} part, {PARTS[name]:.0%} of the accessions, has no stop-free frame of "
                f"{kind} contigs; give sequences of more accessions."
            )
    return part


def train(
    virus: Sequence[Path],
    other: Sequence[Path],
    out: Path,
    *,
    unlabelled: Sequence[Path] = (),
    window: int = 500,
    device: str = "auto",
    seed: int = 0,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train a model on viral and other FASTA, write its folder, and return its `training` record.

    Accessions are held out by `heldout.part_of`: the validation part chooses when to stop and
    balances the calls; the test part gives the figures, measured on the files as written.
    `unlabelled` FASTA serves the filling in of hidden tokens alone. The folder's name is the
    model's. The same seed gives the same model on one machine's CPU; on CUDA, sums in varying
    order make small differences.

    Raises InputError for bad FASTA, or when a part lacks one of the classes.
    """
    recipe = recipe or Recipe()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = Labelled.read(virus, other)
    training, validation, test = (
        _part(sample, name, window) for name in ("training", "validation", "test")
    )
    everything = Labelled([*training.contigs, *read_fasta(unlabelled)], frozenset())
    sizes = {"training": len(training.contigs), "validation": len(validation.contigs)}
    sizes |= {"test": len(test.contigs), "unlabelled": len(everything.contigs) - sizes["training"]}
    logger.info("contigs: %s", sizes)

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bpe = train_tokenizer(varied_frames(training, window, rng).nucleotide, recipe.vocabulary)
    with TemporaryDirectory() as folder:
        bpe.save(f"{folder}/tokenizer.json")
        tokenize = NucleotideTokenizer(Path(folder) / "tokenizer.json")
    trainee = Trainee(recipe, tokenize, bpe.get_vocab_size()).to(device)
    how = (window, tokenize, recipe.batch, recipe.noise, recipe.mask)

    with closing(ahead(Batches(everything, *how).stream(rng.spawn(1)[0]))) as source:
        _optimise(trainee, source, recipe, recipe.warmup_steps, lambda batch: trainee(batch)[1])

    known = frames_of(validation, window)
    average = _Average(trainee, recipe.average)

    def look() -> Scored:
        model = average.model
        scores = frame_scores(model.nucleotide, model.protein, model.classifier, known)
        return score_windows(validation, window, known, scores)

    def loss_of(batch: Batch) -> Tensor:
        logits, filling = trainee(batch)
        viral, weight = (torch.from_numpy(a).to(device) for a in (batch.viral, batch.weight))
        loss = F.cross_entropy(
            logits, viral, reduction="none", label_smoothing=recipe.label_smoothing
        )
        weighed: Tensor = (loss * weight).mean() + recipe.mask_loss * filling
        return weighed

    def after(step: int) -> None:
        average.update()
        if step % max(1, recipe.steps // LOOKS) == 0:
            average.offer(step, figures(validation, look())["windows"]["auc"])

    with closing(ahead(Batches(training, *how).stream(rng.spawn(1)[0]))) as source:
        _optimise(trainee, source, recipe, recipe.steps, loss_of, after)

    average.model.load_state_dict(average.state)
    shift = _balance(validation, look())
    with torch.no_grad():
        average.model.classifier.output_layer.bias[1] += shift

    write_dnabert_s(out / "dnabert_s", average.model.nucleotide)
    bpe.save(str(out / "dnabert_s/tokenizer.json"))
    write_esm2(out / "esm2", average.model.protein)
    write_weights(average.model.classifier.state_dict(), out / "classifier.safetensors")
    parts = {"nucleotide": "dnabert_s", "protein": "esm2", "classifier": "classifier.safetensors"}
    name, dim = out.resolve().name, 2 * recipe.dim
    model = write_model(out, name, window, dim, parts)
    record: dict[str, Any] = {
        "virus": [path.name for path in virus],
        "other": [path.name for path in other],
        "unlabelled": [path.name for path in unlabelled],
        "contigs": sizes,
        "split": "by sha256 of the accession (the id up to the first #, without its version)",
        "shares": PARTS,
        "seed": seed,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "recipe": asdict(recipe),
        "kept_step": average.step,
        "validation": evaluate(model, validation, device),
        "test": evaluate(model, test, device),
    }
    write_model(out, name, window, dim, parts, training=record)
    return record
