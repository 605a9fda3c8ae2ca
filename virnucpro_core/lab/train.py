"""Train a small model of VirNucPro's architecture from labelled FASTA: how `mini` was made.

Both encoders and the classifier start from random weights and learn together, end to end.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from virnucpro_core.errors import need_room
from virnucpro_core.files import blamed
from virnucpro_core.lab.augment import Batch, Batches, Masked, train_tokenizer
from virnucpro_core.lab.corpus import PARTS, SHORT, Corpus, letters
from virnucpro_core.lab.evaluate import evaluate
from virnucpro_core.lab.export import write_modules
from virnucpro_core.lab.heldout import (
    Labelled,
    Look,
    conservative,
    fit_rule,
    frame_embeddings,
    frames_of,
    usable_frames,
)
from virnucpro_core.lab.recipe import Recipe
from virnucpro_core.models.attention import Layout, to_device
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.rule import ContigRule
from virnucpro_core.models.store import Model
from virnucpro_core.results.calls import Float32Array
from virnucpro_core.sequences.tokens import NucleotideTokenizer

logger = logging.getLogger("virnucpro.train")


NUCLEOTIDE_WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Of the nucleotides' vector beside the protein's; the validation part chooses."""


class Trainee(nn.Module):
    """The three modules of a model, trained as one, and heads that only training needs.

    vocabulary: of the tokenizer as trained. kinds: how many the corpus tells apart.
    """

    def __init__(
        self, recipe: Recipe, tokenizer: NucleotideTokenizer, vocabulary: int, kinds: int
    ) -> None:
        super().__init__()
        self.recipe = recipe
        layers, dim, heads = recipe.nucleotide
        self.nucleotide = DNABERTS(vocabulary, layers, dim, heads, 2 * dim, tokenizer=tokenizer)
        self.protein = ESM2(*recipe.protein)
        width = dim + recipe.protein[1]
        self.classifier = MLPClassifier(width, recipe.hidden)
        self.kinds = nn.Linear(width, kinds)
        self.fill = nn.ModuleList(nn.Linear(n, n) for n in (dim, recipe.protein[1]))
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def _half(
        self, encoder: DNABERTS | ESM2, fill: nn.Module, half: Masked
    ) -> tuple[Tensor, Tensor]:
        """Vectors of the sequences, float32 (B, D), and the loss of filling in hidden tokens."""
        device = encoder.device
        layout = Layout.of(torch.from_numpy(half.lengths), device)
        # few lengths to pad to: the kernels for each are prepared once
        layout = replace(layout, max_seqlen=-(-layout.max_seqlen // 32) * 32)
        ids = torch.from_numpy(half.ids).long()
        if device.type == "cuda":
            halves = {name: p.bfloat16() for name, p in encoder.named_parameters()}
            hidden = torch.func.functional_call(encoder, halves, (ids, layout))
        else:
            hidden = encoder(ids, layout)
        pooled = encoder.pool(hidden, layout)
        if not self.recipe.masked_loss or not len(half.at):
            return pooled, pooled.new_zeros(())
        at, truth = (to_device(torch.from_numpy(a), device) for a in (half.at, half.truth))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = F.linear(fill(hidden[at]), encoder.embedding.weight)
        return pooled, F.cross_entropy(logits.float(), truth)

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss of a batch."""
        recipe = self.recipe
        bases, masked_bases = self._half(self.nucleotide, self.fill[0], batch.nucleotide)
        chains, masked_chains = self._half(self.protein, self.fill[1], batch.protein)
        embedding = F.dropout(torch.cat([bases, chains], 1), recipe.dropout, self.training)
        viral, kind = (
            to_device(torch.from_numpy(a), embedding.device) for a in (batch.viral, batch.kind)
        )
        kind = kind.masked_fill(kind >= self.kinds.out_features, -1)
        loss = F.cross_entropy(
            self.classifier(embedding), viral, label_smoothing=recipe.label_smoothing
        )
        of_kind = F.cross_entropy(self.kinds(embedding), kind, ignore_index=-1)
        whole: Tensor = loss + recipe.kinds_loss * of_kind
        return whole + recipe.masked_loss * (masked_bases + masked_chains)


class Course:
    """A trainee with its optimizer, its rate's schedule, and the running average of its weights."""

    def __init__(self, trainee: Trainee, steps: int) -> None:
        self.trainee, self.steps, self.step = trainee, steps, 0
        self.device = trainee.nucleotide.device
        recipe = trainee.recipe
        self.model = copy.deepcopy(trainee).eval().requires_grad_(False)
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            trainee.parameters(),
            recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=fused,
        )
        self.best, self.best_step = -math.inf, 0
        self.state: dict[str, Tensor] = {}

    def train(self, batch: Batch) -> Tensor:
        """One step of AdamW, its rate rising over 300 steps at most, then falling to 0."""
        self.step += 1
        rise = max(1, min(300, self.steps // 5))
        fall = 0.5 + 0.5 * math.cos(math.pi * min(1, self.step / max(1, self.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.trainee.recipe.learning_rate * min(self.step / rise, fall)
        loss = self.trainee.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.trainee.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        return loss.detach()

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.trainee.recipe.average, self.step / (self.step + 10))
        new, mine = self.trainee.state_dict(), self.model.state_dict()
        floats = [name for name, tensor in mine.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in floats], [new[n] for n in floats], 1 - decay)

    def offer(self, quality: float) -> None:
        """Keep the average as it is now if it is the best so far."""
        if quality > self.best:
            self.best, self.best_step = quality, self.step
            self.state = {key: t.detach().clone() for key, t in self.model.state_dict().items()}


def learned_tokenizer(
    corpus: Corpus, window: int, vocabulary: int, seed: int
) -> tuple[Tokenizer, NucleotideTokenizer]:
    """Byte pairs learned on 4,000 windows of the training part, as written and as used."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(len(corpus.length), 4000, p=corpus.chances("training"))
    begin = (rng.random(len(drawn)) * np.maximum(1, corpus.length[drawn] - window)).astype(np.int64)
    windows = corpus.windows(drawn, begin, window)
    bpe = train_tokenizer([letters(row).decode() for row in windows], vocabulary)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        with blamed(path):
            path.write_text(bpe.to_str())
        return bpe, NucleotideTokenizer(path)


def store(model: Trainee, bpe: Tokenizer, out: Path, window: int, **about: Any) -> Model:
    """Write a model's folder."""
    return write_modules(
        out,
        window,
        dnabert_s=model.nucleotide,
        esm2=model.protein,
        classifier=model.classifier,
        tokenizer=bpe.to_str(pretty=True),
        **about,
    )


def settle(known: Look, short: Look, model: Trainee, false: float) -> tuple[float, ContigRule]:
    """Weigh the nucleotides' vector as is best here, and make windows be called rarely: in place.

    Composition is learned by heart sooner than proteins are, so less than full weight can tell
    more of groups never seen. Returns the weight, and the rule for contigs that fits; short ones,
    which have one window, only help to fit it.
    """
    embeddings = frame_embeddings(model.nucleotide, model.protein, known.frames)
    dim, classifier = model.nucleotide.dim, model.classifier

    def weighed(weight: float) -> Float32Array:
        halves = [embeddings[:, :dim] * np.float32(weight), embeddings[:, dim:]]
        whole: Float32Array = np.hstack(halves)
        return whole

    weight = max(NUCLEOTIDE_WEIGHTS, key=lambda w: known.auc(classifier, weighed(w)))
    shift = conservative(known.sample, known.calls(classifier, weighed(weight)), false)
    with torch.no_grad():
        classifier.hidden_layer.weight[:, :dim] *= weight
        classifier.output_layer.bias[1] += shift
    calls = known.calls(classifier, embeddings)
    embeddings = frame_embeddings(model.nucleotide, model.protein, short.frames)
    more = (short.sample, short.calls(classifier, embeddings))
    return weight, fit_rule(known.sample, calls, false, more)


def train(
    virus: Sequence[Path],
    other: Sequence[Path],
    out: Path,
    *,
    more_virus: Sequence[Path] = (),
    more_other: Sequence[Path] = (),
    window: int = 500,
    device: str = "auto",
    workers: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Train a model on viral and other FASTA, write its folder, and return its `training` record.

    Groups are held out by `corpus.part_of`, and what shares k-mers with them: the validation part
    chooses what is kept and how rarely it calls; the test part gives the figures, measured on the
    files as written. `more_…` FASTA are for training alone. The folder's name is the model's.
    Batches are made by `workers` processes, by default one a CPU but one on CUDA, none on CPU. The
    same seed gives the same model on one machine's CPU; on CUDA, sums in varying order make small
    differences.

    Raises InputError for bad FASTA, or when a part lacks one of the classes.
    """
    need_room()
    recipe = recipe or Recipe.read()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if workers is None:
        cpus = len(os.sched_getaffinity(0))
        workers = max(1, cpus - 1) if device.startswith("cuda") else 0
    with TemporaryDirectory() as folder:
        corpus = Corpus.write(Path(folder) / "corpus", virus, other, more_virus, more_other)
        held = {
            part: Labelled.drawn(corpus, part, recipe.contigs, seed)
            for part in ("validation", "test")
        }
        frames = usable_frames(held["validation"], window, "the validation part")
        known = Look(held["validation"], window, frames)
        cut = Labelled.drawn(corpus, "validation", recipe.contigs, seed, SHORT)
        short = Look(cut, window, frames_of(cut, window, runs=True))
        usable_frames(held["test"], window, "the test part")
        torch.manual_seed(seed)
        bpe, tokenize = learned_tokenizer(corpus, window, recipe.vocabulary, seed)
        # a kind in training alone, so in `more_…`, is none to tell; their numbers are the last
        kinds = 1 + int(np.flatnonzero(corpus.measured).max())
        trainee = Trainee(recipe, tokenize, bpe.get_vocab_size(), kinds).to(device)
        if device.startswith("cuda"):
            torch.set_num_threads(1)  # more would take the time of those who make the batches
            torch.backends.cuda.enable_cudnn_sdp(False)  # prepares itself anew for each shape
        how = (tokenize, recipe.batch, recipe.augmentation, seed)
        course = Course(trainee, recipe.steps)
        began, seen = time.monotonic(), 0
        for batch in Batches(corpus, window, *how).stream(recipe.steps, workers):
            loss = course.train(batch)
            seen += len(batch.viral)
            if course.step % recipe.look == 0 or course.step == recipe.steps:
                rate = seen / (time.monotonic() - began)
                average = course.model
                embeddings = frame_embeddings(average.nucleotide, average.protein, known.frames)
                auc = known.auc(average.classifier, embeddings)
                course.offer(auc)
                logger.info(
                    "step %d of %d, loss %.3f, validation contigs' AUC %.4f, %.0f frames/s",
                    course.step, recipe.steps, loss, auc, rate,
                )  # fmt: skip

    course.model.load_state_dict(course.state)
    weight, rule = settle(known, short, course.model, recipe.false_positives)
    about = {"contig_rule": rule.record()}
    with TemporaryDirectory() as folder:  # measured as it is stored, in fp16
        model = store(course.model, bpe, Path(folder), window, **about)
        measured = {part: evaluate(model, held[part], device) for part in held}
    record: dict[str, Any] = {
        "files": {
            name: [path.name for path in files]
            for name, files in (
                ("virus", virus), ("other", other),
                ("more_virus", more_virus), ("more_other", more_other),
            )
        },
        "megabases": {
            part: round(float(corpus.length[corpus.part == i].sum()) / 1e6, 3)
            for i, part in enumerate(PARTS)
        },
        "shares": PARTS,
        "seed": seed,
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "recipe": asdict(recipe),
        "kept_step": course.best_step,
        "nucleotide_weight": weight,
        **measured,
    }  # fmt: skip
    store(course.model, bpe, out, window, training=record, **about)
    return record
