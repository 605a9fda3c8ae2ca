"""The encoders against what this machine's matrix units allow, against float32, against peers.

The yardstick is the *GEMM chain*: the four GEMMs of every layer, same weights, shapes, dtype and
biases, back to back on random data with nothing between. Chain and model are timed in turn, in one
run: GEMMs timed alone on a cool GPU look faster than they are in any model. All weights are random,
of the published sizes on a GPU and small on a CPU.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from virnucpro_core.embedding.schedule import protein_tokens
from virnucpro_core.lab.benchmark.lines import Line, Size
from virnucpro_core.lab.benchmark.peers import PEERS
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.encoder import Encoder
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.layout import unfilled
from virnucpro_core.models.ops import linear
from virnucpro_core.models.packing import plan
from virnucpro_core.models.precision import has_fp8
from virnucpro_core.sequences.tokens import Tokens

logger = logging.getLogger("virnucpro.benchmark")

Run = Callable[[], object]

ESM2_GEMMS = ("qkv", "out", "up", "down")
DNABERT_GEMMS = ("qkv", "out", "gated", "down")
MIXES: dict[str, Sequence[int]] = {
    "166 residues": [166],
    "50 residues": [50],
    "30–166 residues": range(30, 167),
    "1022 residues": [1022],
}
"""Lengths of proteins, in residues, that are drawn evenly."""
BASES_A_TOKEN = 5
"""Bases that one of DNABERT-S's byte pairs stands for, about."""


def build(make: Callable[[], Encoder], device: torch.device, dtype: torch.dtype) -> Any:
    """An encoder with random weights, made on the device, under which activations stay near 1."""
    with unfilled():
        module = make()
    module = module.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        if parameter.dim() == 2:
            std = 1.0 if "embedding" in name else parameter.shape[1] ** -0.5
            parameter.data.normal_(0, std, generator=generator)
        elif "norm" in name and name.endswith("weight"):
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.1, generator=generator)
    return module


def add_outliers(model: ESM2) -> None:
    """Make random weights as unkind as published ones, by what is known of trained transformers.

    One dimension in 320 of the residual stream is massive from the embedding on and grows with
    every layer, to a hundred times the others, while the norms' weights there are small; attention
    is peaked, with logits of a standard deviation of about 3; one hidden unit in a hundred of each
    feed-forward is six times as loud as the others.
    """
    wild = slice(0, None, 320)
    model.embedding.weight.data[:, wild] += 20
    model.norm.weight.data[wild] = 0.05
    layer: Any
    for layer in model.layers:
        layer.down.bias.data[wild] += 3
        layer.attention_norm.weight.data[wild] = layer.ffn_norm.weight.data[wild] = 0.05
        layer.qkv.weight.data[: 2 * model.dim] *= 1.7
        layer.up.weight.data[::100] *= 6


def timed(
    runs: Mapping[str, Run], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each run, timed in turn after one round unseen."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    gpu = torch.cuda.is_available()
    for _ in range(repeats + 1):
        for name, run in runs.items():
            if gpu:
                torch.cuda.synchronize()
            start = clock()
            run()
            if gpu:
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    return {name: statistics.median(all_[1:]) for name, all_ in seconds.items()}


def chain(model: Encoder, gemms: Sequence[str], tokens: int) -> Run:
    """The GEMMs of every layer back to back, on random rows."""
    layers: list[nn.Linear] = [
        getattr(layer, name) for layer in model.get_submodule("layers").children() for name in gemms
    ]
    widths = {layer.in_features for layer in layers}
    rows = {n: torch.randn(tokens, n, device=model.device).to(model.dtype) for n in widths}

    def run() -> None:
        for layer in layers:
            linear(rows[layer.in_features], layer)

    return run


def batches(lengths: Sequence[int], budget: int, letters: int) -> list[Tokens]:
    """Random tokens in packed batches, full ones only, of sequences of these many tokens."""
    rng = np.random.default_rng(0)
    planned = plan(np.asarray(lengths), budget)
    return [
        Tokens(rng.integers(4, letters, int(part.sum())), part)
        for part in (np.asarray(lengths)[rows] for rows in (planned[:-1] or planned))
    ]


def protein_batches(size: Size, residues: Sequence[int], count: int = 1) -> list[Tokens]:
    """About `count` full batches of proteins, their lengths drawn from these."""
    rng = np.random.default_rng(1)
    number = max(2, int((count + 0.5) * size.tokens / (np.mean(residues) + 2)))
    return batches((rng.choice(residues, number) + 2).tolist(), size.tokens, 24)


def through(model: Encoder, work: Sequence[Tokens]) -> Run:
    """Embed batches, one after another."""

    def run() -> None:
        for tokens in work:
            model.embed_tokens_packed(tokens)

    return run


def repeated(run: Run, times: int) -> None:
    """Run several times with no wait between."""
    for _ in range(times):
        run()


def tokens_in(work: Sequence[Tokens]) -> int:
    return sum(len(tokens.ids) for tokens in work)


def speed(
    name: str, model: ESM2, work: Sequence[Tokens], source: ESM2, size: Size, bar: float | None
) -> Iterator[Line]:
    """Tokens/s of a model, of the GEMM chain of `source` on as many tokens a batch, their ratio."""
    gemms = chain(source, ESM2_GEMMS, tokens_in(work) // len(work))
    runs: dict[str, Run] = {
        "chain": partial(repeated, gemms, len(work)),
        "model": through(model, work),
    }
    seconds = timed(runs, size.repeats if bar is None else 3 * size.repeats)
    ceiling, reached = (tokens_in(work) / seconds[name] for name in runs)
    yield Line(f"{name}: GEMM chain", ceiling, "tokens/s")
    yield Line(f"{name}: model", reached, "tokens/s")
    yield Line(f"{name}: share of the chain", reached / ceiling, "", bar)


def esm2_speed(size: Size, device: torch.device) -> Iterator[Line]:
    """ESM-2 against its GEMM chain in every half precision and length mix, then in fp8."""
    tables: dict[str, Sequence[int]] = {
        Path(name).stem: (protein_tokens(Path(name)) - 2).tolist() for name in size.tables
    }
    for precision, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        model: ESM2 = build(lambda: ESM2(*size.esm2), device, dtype)
        for mix, residues in {**MIXES, **tables}.items():
            work = protein_batches(size, residues, 2)
            bar = 0.93 if mix in ("166 residues", "50 residues") and device.type == "cuda" else None
            yield from speed(f"ESM-2 {precision}, {mix}", model, work, model, size, bar)
    if has_fp8(device):
        work = protein_batches(size, [166], 2)
        quantized = build(lambda: ESM2(*size.esm2), device, dtype).to_fp8()
        yield from speed("ESM-2 fp8 to bf16's chain", quantized, work, model, size, 1.4)


def budgets(size: Size, device: torch.device) -> Iterator[Line]:
    """The chain's tokens/s at batches near the usual one: cuBLAS tiles some of them better."""
    model: ESM2 = build(lambda: ESM2(*size.esm2), device, torch.bfloat16)
    near = [size.tokens + more for more in (-64, -32, -16, -8, -1, 0, 8, 1000, 1024)]
    runs = {str(tokens): chain(model, ESM2_GEMMS, tokens) for tokens in near}
    for tokens, seconds in timed(runs, 2).items():
        yield Line(f"ESM-2 bf16: GEMM chain, {tokens} tokens", int(tokens) / seconds, "tokens/s")


def dnabert_s_share(size: Size, device: torch.device) -> Iterator[Line]:
    """DNABERT-S against its GEMM chain, and its share of both encoders on windows of 500 bases."""
    dtype = torch.bfloat16
    proteins = protein_batches(size, [166])
    frames = sum(len(tokens.lengths) for tokens in proteins)
    bases = batches([500 // BASES_A_TOKEN + 2] * frames, size.tokens, size.dnabert_s[0])
    model = build(lambda: DNABERTS(*size.dnabert_s), device, dtype)
    esm2 = build(lambda: ESM2(*size.esm2), device, dtype)
    runs = {
        "chain": chain(model, DNABERT_GEMMS, tokens_in(bases)),
        "dnabert": through(model, bases),
        "esm2": through(esm2, proteins),
    }
    seconds = timed(runs, size.repeats)
    gpu = device.type == "cuda"
    share = seconds["dnabert"] / (seconds["dnabert"] + seconds["esm2"])
    yield Line("DNABERT-S bf16: model", tokens_in(bases) / seconds["dnabert"], "tokens/s")
    reached = seconds["chain"] / seconds["dnabert"]
    yield Line("DNABERT-S bf16: share of its chain", reached, "", 0.5 if gpu else None)
    yield Line("DNABERT-S: share of both encoders' time", share, "", 0.08 if gpu else None, True)
    yield Line(
        "both encoders, windows of 500", frames / sum(list(seconds.values())[1:]), "frames/s"
    )


def some_proteins(size: Size) -> Tokens:
    """About 65 random proteins of 30 to 166 residues, packed."""
    proteins = protein_batches(size, range(30, 167))[0]
    ends = np.cumsum(proteins.lengths)
    kept = range(0, len(ends), max(1, len(ends) // 64))
    parts = [proteins.ids[ends[n] - proteins.lengths[n] : ends[n]] for n in kept]
    return Tokens(np.concatenate(parts), proteins.lengths[kept])


def compared(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Relative difference, to what tells the proteins apart (embeddings less their mean), and least
    cosine of embeddings (N, dim)."""
    relative = (found - expected).norm() / (expected - expected.mean(0)).norm()
    cosine = torch.nn.functional.cosine_similarity(found, expected).min()
    return float(relative), float(cosine)


def accuracy(size: Size, device: torch.device) -> Iterator[Line]:
    """Mean embeddings of every precision against float32, on weights with outliers."""
    tokens = some_proteins(size)
    full: ESM2 = build(lambda: ESM2(*size.esm2), device, torch.float32)
    add_outliers(full)
    expected = full.embed_tokens_packed(tokens)
    for name in ("fp16", "bf16", "fp8") if has_fp8(device) else ("fp16", "bf16"):
        model = copy.deepcopy(full).to(torch.float16 if name == "fp16" else torch.bfloat16)
        found = (model.to_fp8() if name == "fp8" else model).embed_tokens_packed(tokens)
        relative, cosine = compared(found, expected)
        yield Line(f"ESM-2 {name} to fp32: relative difference", relative, "")
        yield Line(f"ESM-2 {name} to fp32: least cosine", cosine, "", 0.999)


@torch.inference_mode()
def peers(size: Size, device: torch.device) -> Iterator[Line]:
    """Our bf16 against every peer that is installed, each at its best batch of 166 residues."""
    length = 166 + 2
    gpu = device.type == "cuda"
    ours = build(lambda: ESM2(*size.esm2), device, torch.bfloat16)
    work = protein_batches(size, [166], 2)
    for peer in PEERS:
        best, factor = 0.0, 0.0
        for budget in peer.budgets if gpu else (1024,):
            ids = torch.randint(4, 24, (budget // length, length), device=device)
            try:
                run = peer.make(size.esm2, ids)
                runs: dict[str, Run] = {
                    "ours": through(ours, work),
                    "peer": partial(repeated, run, len(work)),
                }
                seconds = timed(runs, max(3, size.repeats // 2))
            except Exception as error:  # whatever is wrong with it, ours can still be timed
                logger.warning("%s is left out: %s", peer.name, error)
                break
            rate = len(work) * ids.numel() / seconds["peer"]
            if rate > best:
                best, factor = rate, tokens_in(work) / seconds["ours"] / rate
        if best:
            yield Line(peer.name, best, "tokens/s")
            yield Line(f"ours in bf16 to {peer.name}", factor, "times", peer.bar if gpu else None)
