"""The GPU's kernels on a CPU, in Triton's interpreter: the same source, slowly."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from virnucpro_core.models import attention
from virnucpro_core.models.attention import Layout, Rotary, alibi_slopes
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.sequences.tokens import Tokens

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="test_gpu.py runs the kernels as they are compiled"
)


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    pytest.importorskip("triton")
    interpreter = import_module("triton.runtime.interpreter")
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        # numpy 2.4 makes no integer of an array of one element, as the interpreter has it
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang_tensor", patch)
        yield import_module("virnucpro_core.models.kernels")


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("mix", [[5, 1, 70, 40], [130, 64, 2], [300, 5]], ids=str)
@pytest.mark.parametrize("width", [64, 24])
@pytest.mark.parametrize("alibi", [False, True])
def test_attention_equals_float64(
    kernels: ModuleType, mix: list[int], width: int, alibi: bool
) -> None:
    torch.manual_seed(0)
    layout = Layout.of(torch.tensor(mix), torch.device("cpu"))
    q, k, v = torch.randn(layout.tokens, 3, 2, width).half().unbind(1)
    positions = torch.tensor(alibi_slopes(2)) if alibi else Rotary.of(layout, width)
    expected = attention._padded(q.double(), k.double(), v.double(), layout, positions)
    assert off(attention._triton(q, k, v, layout, positions), expected) < 1e-3


@pytest.mark.parametrize("dim", [48, 2560])
def test_row_kernels_equal_float64(kernels: ModuleType, dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(9, dim).half()
    weight, bias = torch.randn(2, dim).half()
    owed = torch.randn(dim)

    normed = kernels.layer_norm(x, owed, (weight, bias), 1e-5)
    expected = F.layer_norm(x.double() + owed, (dim,), weight.double(), bias.double())
    assert off(normed, expected) < 1e-3
    alone = kernels.layer_norm(x, None, (weight, bias), 1e-5)
    expected = F.layer_norm(x.double(), (dim,), weight.double(), bias.double())
    assert off(alone, expected) < 1e-3

    gate, value = x.double().chunk(2, 1)
    assert off(kernels.gated_gelu(x), F.gelu(gate) * value) < 1e-3

    means = kernels.segment_mean(x, torch.tensor([0, 2, 5]), torch.tensor([2, 3, 0]))
    expected = torch.stack([x[:2].double().mean(0), x[2:5].double().mean(0)])
    assert off(means[:2], expected) < 1e-6
    assert not means[2].any()


@pytest.mark.parametrize("packed", [[9, 3, 70], [3]], ids=str)
def test_encoders_through_the_kernels_equal_float32(
    kernels: ModuleType, packed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    tokens = Tokens(rng.integers(4, 24, sum(packed)), np.array(packed))
    torch.manual_seed(0)
    for model in (ESM2(2, 64, 4), DNABERTS(64, 2, 96, 6, 128)):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        expected = model.eval().embed_tokens_packed(tokens)
        with monkeypatch.context() as context:
            for module in ("ops", "attention", "esm2"):
                context.setattr(
                    f"virnucpro_core.models.{module}.fused", lambda x: x.is_floating_point()
                )
            found = model.half().embed_tokens_packed(tokens)
        assert off(found, expected.double()) < 1e-2
