"""Kernels and encoders on a GPU, in every backend and half precision, against float32 and float64.

Memory that torch hands out uninitialised is filled with NaN, so a value nobody wrote does not pass.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import esm
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import virnucpro_core as vnp
from virnucpro_core.models import attention
from virnucpro_core.models.attention import Layout, Positions, Rotary, alibi_slopes
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.float8 import Float8Linear
from virnucpro_core.models.layout import Stored, filled
from virnucpro_core.models.precision import NORM_SCALE
from virnucpro_core.published.formats import FAIR_ESM, Renamed
from virnucpro_core.sequences.tokens import Tokens

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Relative error, ‖found − expected‖ / ‖expected‖, of one operation."""
THROUGH_A_MODEL = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
MIXES = [[1, 2, 300, 64, 65, 128, 7], [168] * 9, [50, 3], [256, 255, 1], [5], [1024, 3]]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    with torch.inference_mode():
        yield
    torch.use_deterministic_algorithms(False)


def off(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize(("heads", "width"), [(3, 64), (2, 24)])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("positions", ["rotary", "alibi"])
def test_attention_every_backend_equals_float64(
    mix: list[int], heads: int, width: int, dtype: torch.dtype, positions: str
) -> None:
    torch.manual_seed(0)
    layout = Layout.of(torch.tensor(mix), torch.device("cuda"))
    qkv = torch.randn(layout.tokens, 3 * heads * width, device="cuda").to(dtype)
    q, k, v = qkv.view(layout.tokens, 3, heads, width).unbind(1)
    at: Positions = (
        Rotary.of(layout, width)
        if positions == "rotary"
        else torch.tensor(alibi_slopes(heads), device="cuda")
    )
    expected = attention._padded(q.double(), k.double(), v.double(), layout, at)
    for name, backend in attention.BACKENDS.items():
        if name == "varlen" and positions == "alibi":
            continue
        # torch rotates in half precision, our kernel in float32
        allowed = ROUNDING[dtype] * (1 if name == "triton" else 4)
        assert off(backend(q, k, v, layout, at), expected) < allowed, name


@pytest.mark.parametrize("dim", [2560, 768, 480, 48])
@pytest.mark.parametrize("dtype", HALVES)
def test_kernels_equal_float64(dim: int, dtype: torch.dtype) -> None:
    from virnucpro_core.models import kernels

    torch.manual_seed(0)
    x = torch.randn(999, dim, device="cuda").to(dtype)
    weight, bias = torch.randn(2, dim, device="cuda").to(dtype)
    owed = torch.randn(dim, device="cuda")

    expected = F.layer_norm(x.double() + owed, (dim,), weight.double(), bias.double())
    assert off(kernels.layer_norm(x, owed, (weight, bias), 1e-5), expected) < ROUNDING[dtype]

    quantized = kernels.layer_norm(x, owed, None, 1e-5).double() / NORM_SCALE
    assert off(quantized, F.layer_norm(x.double() + owed, (dim,))) < 0.03

    gate, value = x.double().chunk(2, 1)
    assert off(kernels.gated_gelu(x), F.gelu(gate) * value) < ROUNDING[dtype]

    begin, count = torch.tensor([[1, 200, 999], [100, 799, 0]], device="cuda")
    means = kernels.segment_mean(x, begin, count)
    expected = torch.stack([x[1:101].double().mean(0), x[200:].double().mean(0)])
    assert off(means[:2], expected) < 1e-6
    assert not means[2].any(), "the mean of no rows is 0"


def esm2_pair(dim: int, heads: int, layers: int = 3) -> tuple[esm.model.esm2.ESM2, ESM2]:
    """A random ESM-2 of fair-esm, and ours with the same weights, both in float32 on the GPU."""
    torch.manual_seed(1)
    theirs = esm.model.esm2.ESM2(num_layers=layers, embed_dim=dim, attention_heads=heads)
    for name, parameter in theirs.named_parameters():
        if name.endswith("norm.weight") or "emb_layer_norm_after.weight" in name:
            torch.nn.init.normal_(parameter, 1, 0.2)
        else:
            torch.nn.init.normal_(parameter, std=1 if "embed" in name else 1.5 / dim**0.5)
    state = Renamed(theirs.state_dict(), FAIR_ESM)
    ours = filled(ESM2(layers, dim, heads), Stored(Path("random"), {}, state))
    return theirs.eval().cuda(), ours.cuda()


def fair_esm_embedding(model: esm.model.esm2.ESM2, protein: str) -> Tensor:
    convert = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    _, _, tokens = convert([("protein", protein)])
    hidden = model(tokens.cuda(), repr_layers=[3])["representations"][3][0]
    mean: Tensor = hidden[1 : min(1024, len(protein)) + 1].mean(0)
    return mean


@pytest.mark.parametrize(("dim", "heads"), [(256, 4), (480, 20), (48, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("backend", ["", "padded", "varlen"])
def test_esm2_equals_fair_esm(
    dim: int, heads: int, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "varlen" and dtype == torch.float32:
        pytest.skip("torch's packed attention is for half precision")
    monkeypatch.setenv("VIRNUCPRO_ATTENTION", backend)
    rng = random.Random(0)
    lengths = (1, 2, 50, 62, 63, 166, 166, 254, 255, 300, 1022, 1024, 1100)
    texts = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=n)) for n in lengths]
    theirs, ours = esm2_pair(dim, heads)
    expected = torch.stack([fair_esm_embedding(theirs, text) for text in texts]).cpu()
    ours = ours.to(dtype)
    found = torch.from_numpy(ours.embed(texts, token_budget=700))
    assert off(found, expected) < THROUGH_A_MODEL[dtype]
    alone = np.concatenate([ours.embed([text]) for text in texts])
    assert off(torch.from_numpy(alone), expected) < THROUGH_A_MODEL[dtype]
    assert not ours.embed(["", "MK"])[0].any(), "no residues, no mean"
    assert ours.embed([]).shape == (0, dim)


def test_esm2_plain_torch_in_half_precision_equals_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, ours = esm2_pair(256, 4)
    texts = ["MKLV" * n for n in (1, 20, 70)] + ["MK<mask>LV"]
    ours = ours.half()
    kernels = ours.embed(texts)
    monkeypatch.setenv("VIRNUCPRO_KERNELS", "torch")
    assert off(torch.from_numpy(kernels), torch.from_numpy(ours.embed(texts))) < 4e-3


def test_embedding_a_batch_never_waits_for_the_gpu() -> None:
    from virnucpro_core.models.dnabert_s import DNABERTS

    lengths = np.array([168, 168, 52, 3])
    tokens = Tokens(np.random.default_rng(0).integers(4, 24, int(lengths.sum())), lengths)
    for model in (ESM2(2, 256, 4), DNABERTS(64, 2, 96, 6, 128)):
        model = model.eval().cuda().half()
        model.embed_tokens_packed(tokens)  # compiles
        torch.use_deterministic_algorithms(False)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.embed_tokens_packed(tokens)
        finally:
            torch.cuda.set_sync_debug_mode("default")


needs_e4m3 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU with e4m3",
)


@needs_e4m3
@pytest.mark.parametrize("tokens", [1, 33, 1000])
def test_float8_linear_equals_float64(tokens: int) -> None:
    torch.manual_seed(0)
    norm, up = nn.LayerNorm(256).cuda(), nn.Linear(256, 512).cuda()
    norm.weight.normal_()
    norm.bias.normal_()
    first = Float8Linear(up, norm)
    second = Float8Linear(nn.Linear(512, 256).cuda(), first)
    normed = F.layer_norm(torch.randn(tokens, 256, device="cuda"), (256,))
    rows = (normed * NORM_SCALE).to(torch.float8_e4m3fn)

    unfolded = rows.double() / NORM_SCALE * norm.weight.double() + norm.bias.double()
    expected = F.linear(unfolded, up.weight.double(), up.bias.double())
    assert off(first(rows), expected) < 0.04
    hidden = first.gelu(rows)
    assert off(hidden.double() / first.scale, F.gelu(expected)) < 0.06

    x = torch.randn(tokens, 256, device="cuda").bfloat16()
    want = x.double() + hidden.double() @ second.weight.double().t() * second.factor
    second.add_to(x, hidden)
    assert off(x, want) < ROUNDING[torch.bfloat16]


@needs_e4m3
def test_float8_gelu_never_overflows() -> None:
    """Of all normed rows, one with all its length in one place makes the largest values."""
    norm, up = nn.LayerNorm(256).cuda(), nn.Linear(256, 512).cuda()
    up.weight.zero_()
    up.weight[7, 3] = 5.0
    up.bias[7] = 1.0
    first = Float8Linear(up, norm)
    row = torch.zeros(1, 256, device="cuda")
    row[0, 3] = 16 * NORM_SCALE
    hidden = first.gelu(row.to(torch.float8_e4m3fn)).double() / first.scale
    assert abs(float(hidden[0, 7]) - 81) < 1


@needs_e4m3
@pytest.mark.parametrize("layers", [3, 18])  # of 18, some stay out of fp8
def test_esm2_in_fp8_is_near_float32(layers: int) -> None:
    _, ours = esm2_pair(256, 4, layers)
    rng = random.Random(0)
    texts = ["".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=n)) for n in (30, 166, 100, 300)]
    expected = torch.from_numpy(ours.embed(texts))
    found = torch.from_numpy(ours.bfloat16().to_fp8().embed(texts))
    assert off(found, expected) < 0.1
    assert F.cosine_similarity(found, expected).min() > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("backend", ["", "padded"])
def test_dnabert_s_equals_the_published_code(
    data: Path, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_ATTENTION", backend)
    folder = data / "dnabert_s_tiny"
    inputs = json.loads(gzip.decompress((folder / "inputs.json.gz").read_bytes()))
    ids = [row["input_ids"] for row in inputs]
    tokens = Tokens(np.concatenate(ids), np.array(list(map(len, ids))))
    encoder = vnp.load_dnabert_s(folder).to(device="cuda", dtype=dtype)
    expected = torch.from_numpy(np.load(folder / "mean_embeddings.npy"))
    assert off(encoder.embed_tokens_packed(tokens).cpu(), expected) < THROUGH_A_MODEL[dtype]
