"""Train a small model of VirNucPro's architecture from labelled FASTA: how `mini` was made.

Both encoders start from random weights. They first learn the composition of all sequences given,
labelled or not, then, with the classifier on top, to tell viral frames from others.
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

from virnucpro_core.augment import (
    BASES,
    RESIDUES,
    Batch,
    Batches,
    Composition,
    train_tokenizer,
    varied_frames,
)
from virnucpro_core.heldout import (
    PARTS,
    Labelled,
    Scored,
    balance,
    evaluate,
    figures,
    frame_scores,
    frames_of,
    score_windows,
    usable,
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

LOOK = 40
"""The validation part is looked at after so many steps."""


@dataclass(frozen=True)
class Recipe:
    """Sizes and schedule: with data and seed, all that determines a model. Defaults made `mini`."""

    layers: int = 4
    dim: int = 160
    heads: int = 5
    hidden: int = 128  # of the classifier
    vocabulary: int = 512
    warmup_steps: int = 1056  # on composition alone
    steps: int = 567  # with labels
    warmup_batch: int = 192  # frames
    batch: int = 128  # frames
    warmup_rate: float = 1e-3
    learning_rate: float = 3e-4
    weight_decay: float = 0.1
    mask: float = 0.08  # mean share of tokens hidden
    noise: float = 0.03  # mean share of letters replaced at random
    dropout: float = 0.2  # of embeddings, before the classifier
    hide_nucleotide: float = 0.3  # share of frames whose protein's vector has to do alone
    hide_protein: float = 0.15  # and the reverse
    nucleotide_weight: float = 0.7  # of its vector, in the finished model
    components: int = 128  # of the composition of each of nucleotides and protein
    composition_loss: float = 0.3  # its weight beside the labels
    label_smoothing: float = 0.05
    average: float = 0.995  # decay of the running average of the weights, which is what is kept


class Trainee(nn.Module):
    """The three modules of a model, trained as one, and heads that tell the composition.

    sizes: of the vocabulary, and of the compositions of nucleotides and of protein.
    """

    def __init__(self, recipe: Recipe, tokenizer: NucleotideTokenizer, *sizes: int) -> None:
        super().__init__()
        self.dropout = recipe.dropout
        self.hide = (recipe.hide_nucleotide, recipe.hide_protein)
        vocabulary, *components = sizes
        shape = (recipe.layers, recipe.dim, recipe.heads)
        self.nucleotide = DNABERTS(vocabulary, *shape, 2 * recipe.dim, tokenizer=tokenizer)
        self.protein = ESM2(*shape)
        self.heads = nn.ModuleList(nn.Linear(recipe.dim, n) for n in components)
        self.classifier = MLPClassifier(2 * recipe.dim, recipe.hidden)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits of the frames (B, 2), and the mean squared error of their composition."""
        pooled, errors = [], []
        for encoder, head, tokens, truth in (
            (self.nucleotide, self.heads[0], batch.nucleotide, batch.composition[0]),
            (self.protein, self.heads[1], batch.protein, batch.composition[1]),
        ):
            device = encoder.device
            layout = Layout.of(torch.from_numpy(tokens.lengths), device)
            vectors = encoder.pool(encoder(torch.from_numpy(tokens.ids), layout), layout)
            pooled.append(vectors)
            errors.append(F.mse_loss(head(vectors).float(), torch.from_numpy(truth).to(device)))
        if self.training:  # each half has to tell without the other, in some of the frames
            at = torch.rand(len(vectors), 1, device=device)
            pooled[0] = pooled[0] * (at >= self.hide[0])
            pooled[1] = pooled[1] * (at < 1 - self.hide[1])
        embedding = F.dropout(torch.cat(pooled, 1), self.dropout, self.training)
        return self.classifier(embedding), (errors[0] + errors[1]) / 2


def _optimise(
    trainee: Trainee,
    source: Iterator[Batch],
    steps: int,
    rate: float,
    decay: float,
    loss_of: Callable[[Batch], Tensor],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """AdamW for `steps` batches, its rate rising over 60 of them at most, then falling to 0."""
    device = trainee.nucleotide.device.type
    optimizer = torch.optim.AdamW(trainee.parameters(), rate, weight_decay=decay)
    rise = max(1, min(60, steps // 5))
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
    `unlabelled` FASTA (its training part) serves the learning of composition alone. The folder's
    name is the model's. The same seed gives the same model on one machine's CPU; on CUDA, sums in
    varying order make small differences.

    Raises InputError for bad FASTA, or when a part lacks one of the classes.
    """
    recipe = recipe or Recipe()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    sample = Labelled.read(virus, other)
    training, validation, test = (
        usable(sample, name, window) for name in ("training", "validation", "test")
    )
    more = Labelled(list(read_fasta(unlabelled)), frozenset()).part("training")
    everything = Labelled([*training.contigs, *more.contigs], training.viral)
    sizes = {"training": len(training.contigs), "validation": len(validation.contigs)}
    sizes |= {"test": len(test.contigs), "unlabelled": len(more.contigs)}
    logger.info("contigs: %s", sizes)

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    bpe = train_tokenizer(varied_frames(training, window, rng).nucleotide, recipe.vocabulary)
    with TemporaryDirectory() as folder:
        bpe.save(f"{folder}/tokenizer.json")
        tokenize = NucleotideTokenizer(Path(folder) / "tokenizer.json")
    frames = varied_frames(everything, window, rng)
    some = rng.permutation(len(frames.viral))[:4000]  # as many as there are hexamers
    words = (
        Composition(BASES, 6, [frames.nucleotide[i] for i in some], recipe.components),
        Composition(RESIDUES, 2, [frames.protein[i] for i in some], recipe.components),
    )
    sides = (kind.axes.shape[1] for kind in words)
    trainee = Trainee(recipe, tokenize, bpe.get_vocab_size(), *sides).to(device)
    workers = 2 if device.startswith("cuda") else 0
    how, decay = (window, tokenize, words), recipe.weight_decay
    varied = (recipe.noise, recipe.mask)

    warmup = Batches(everything, *how, recipe.warmup_batch, *varied, (seed, 0))
    with closing(warmup.stream(workers)) as source:
        steps, rate = recipe.warmup_steps, recipe.warmup_rate
        _optimise(trainee, source, steps, rate, decay, lambda batch: trainee(batch)[1])

    known = frames_of(validation, window)
    average = _Average(trainee, recipe.average)

    def look() -> Scored:
        model = average.model
        scores = frame_scores(model.nucleotide, model.protein, model.classifier, known)
        return score_windows(validation, window, known, scores)

    def loss_of(batch: Batch) -> Tensor:
        logits, error = trainee(batch)
        viral, weight = (torch.from_numpy(a).to(device) for a in (batch.viral, batch.weight))
        loss = F.cross_entropy(
            logits, viral, reduction="none", label_smoothing=recipe.label_smoothing
        )
        weighed: Tensor = (loss * weight).mean() + recipe.composition_loss * error
        return weighed

    def after(step: int) -> None:
        average.update()
        if step % LOOK == 0 or step == recipe.steps:
            average.offer(step, figures(validation, look())["windows"]["auc"])

    labelled = Batches(training, *how, recipe.batch, *varied, (seed, 1))
    with closing(labelled.stream(workers)) as source:
        _optimise(trainee, source, recipe.steps, recipe.learning_rate, decay, loss_of, after)

    average.model.load_state_dict(average.state)
    with torch.no_grad():
        average.model.classifier.hidden_layer.weight[:, : recipe.dim] *= recipe.nucleotide_weight
    shift = balance(validation, look())
    with torch.no_grad():
        average.model.classifier.output_layer.bias[1] += shift

    write_dnabert_s(out / "dnabert_s", average.model.nucleotide)
    bpe.save(str(out / "dnabert_s/tokenizer.json"))
    write_esm2(out / "esm2", average.model.protein)
    write_weights(average.model.classifier.state_dict(), out / "classifier.safetensors")
    name, dim = out.resolve().name, 2 * recipe.dim
    model = write_model(out, name, window, dim)
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
    write_model(out, name, window, dim, training=record)
    return record
