"""What the two encoders share: pooled embeddings of a list of sequences, and their files."""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.attention import Layout
from virnucpro_core.models.packing import plan
from virnucpro_core.models.precision import PRECISIONS, check_precision, dtype_of
from virnucpro_core.reading import read_object
from virnucpro_core.sequences.tokens import Tokens


class Encoder(nn.Module, ABC):
    """Sequences to one vector each: tokenise, run packed, average over tokens."""

    dim: int

    @abstractmethod
    def tokenize(self, sequences: Sequence[str]) -> Tokens:
        """Token ids of the sequences, one after another."""

    @abstractmethod
    def forward(self, ids: Tensor, layout: Layout) -> Tensor:
        """Hidden states (T, dim), in the module's dtype; ids: int64 (T) on the CPU, packed."""

    @abstractmethod
    def pool(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Mean over each sequence's tokens as the original takes it: float32 (B, dim)."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @torch.inference_mode()
    def embed_tokens_packed(self, tokens: Tokens) -> Tensor:
        """Pooled embeddings, float32 (B, dim) on the module's device, of one packed batch."""
        gpu = self.device.type == "cuda"
        # kernels launch on the current device, whatever their tensors lie on
        with torch.cuda.device(self.device) if gpu else nullcontext():
            layout = Layout.of(torch.from_numpy(tokens.lengths), self.device)
            return self.pool(self(torch.from_numpy(tokens.ids), layout), layout)

    @property
    def precision(self) -> str:
        """Name of the precision that the encoder is in."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def to_fp8(self) -> Self:
        """Quantize in place what the encoder can run in e4m3: nothing, unless it says otherwise."""
        return self

    def placed(self, device: str | torch.device, precision: str) -> Self:
        """Move the encoder, in place, to a device and a precision.

        Raises InputError for a precision that is unknown, that the device lacks, or that cannot be
        reached any more: what is quantized stays so.
        """
        check_precision(precision, torch.device(device))
        if self.precision == "fp8":
            if precision != "fp8":
                raise InputError("this encoder is in fp8 already; load it again for more.")
            return self.to(device=device)
        self.to(device=device, dtype=dtype_of(precision))
        return self.to_fp8() if precision == "fp8" else self

    def embed(
        self,
        sequences: Sequence[str],
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        token_budget: int = 8192,
    ) -> NDArray[np.float32]:
        """Embed sequences: float32 (N, dim), in input order, pooled as the original pools.

        device and precision ("fp32", "bf16", "fp16", "fp8") default to where and as the module is;
        others use a copy of it. Raises InputError for a sequence that the tokeniser refuses.
        """
        # an empty tensor knows which device "cuda" is; a copy is only made for another one
        target = self.device if device is None else torch.empty(0, device=device).device
        precision = precision or self.precision
        if (target, precision) != (self.device, self.precision):
            moved = copy.deepcopy(self).placed(target, precision)
            return moved.embed(sequences, token_budget=token_budget)
        result = np.empty((len(sequences), self.dim), np.float32)
        # a few letters make a token in the one encoder, one letter in the other
        for rows in plan(np.fromiter(map(len, sequences), np.int64, len(sequences)), token_budget):
            tokens = self.tokenize([sequences[row] for row in rows])
            result[rows] = self.embed_tokens_packed(tokens).cpu().numpy()
        return result


def folder_config(folder: Path) -> dict[str, Any]:
    """The config.json of a Hugging Face folder; ModelError when it is missing or no JSON."""
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{path}: no such file; give a model folder with config.json.")
    return read_object(path)


WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What weights are called in a Hugging Face folder; the first that is there is taken."""


def folder_weights(folder: Path) -> Path:
    """The weight file of a Hugging Face folder, safetensors first; ModelError when it has none."""
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return folder / name
    raise ModelError(f"{folder}: holds no weights; give a folder with model.safetensors.")


def config_size(path: Path, config: Mapping[str, Any], key: str) -> int:
    """A size out of a configuration; ModelError when it is missing or no positive number."""
    value = config.get(key)
    if type(value) is not int or not 0 < value < 1 << 31:  # True is an int too
        raise ModelError(f"{path}: its configuration has no {key!r}; fetch the model again.")
    return value


_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")


def check_sizes(
    path: Path,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    layers: int,
    heads: int,
) -> None:
    """Compare a configuration with the weights, before a network of its sizes is built.

    state: weights under their published names. shapes: what some must have by the configuration;
    the first one's last size is the network's width. Raises ModelError for other shapes, another
    number of layers, or heads that do not share the width.
    """
    _compare(path, state, shapes)
    numbers = {found[1] for name in state if (found := _LAYER.search(name))}
    if len(numbers) != layers:
        raise ModelError(
            f"{path}: its configuration says {layers} layers, its weights have {len(numbers)}; "
            "fetch the model again."
        )
    width = next(iter(shapes.values()))[-1]
    if width % heads:
        raise ModelError(
            f"{path}: its configuration says {heads} heads, which do not share {width} values; "
            "fetch the model again."
        )


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], layers: int
) -> dict[str, Tensor]:
    """A published state dict under our names.

    names: our modules' names to the published ones, `{n}` standing for the layer; of several
    published names, parted by blanks, the weights are stacked along the first dimension.
    """
    result: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        for n in range(layers if "{n}" in ours else 1):
            for kind in ("weight", "bias"):
                keys = [f"{name.format(n=n)}.{kind}" for name in theirs.split()]
                if all(key in state for key in keys):
                    parts = [state[key] for key in keys]
                    alike = parts[0].ndim and len({part.shape for part in parts}) == 1
                    # else the one has a shape that load_into refuses
                    whole = torch.cat(parts) if len(parts) > 1 and alike else parts[0]
                    result[f"{ours.format(n=n)}.{kind}"] = whole
    return result


class _Undrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made in here have shapes alone, on the meta device.

    Their embeddings are not drawn, which on that device imports all of torch._dynamo: a second.
    """
    with torch.device("meta"), _Undrawn():
        yield


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Put a state dict into an `unfilled` module, on the device and in the dtype asked.

    The file's tensors are mapped: each goes straight to its place, with no copy in between. Raises
    ModelError when names or shapes do not match.
    """
    expected = {name: tensor.shape for name, tensor in module.state_dict().items()}
    _compare(path, state, expected)
    placed = {name: state[name].to(device=device, dtype=dtype) for name in expected}
    module.load_state_dict(placed, assign=True)


def _compare(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]
) -> None:
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise ModelError(
            f"{path}: lacks the weight {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}; fetch the model again."
        )
    for name, shape in expected.items():
        if state[name].shape != shape or not state[name].is_floating_point():
            raise ModelError(
                f"{path}: weight {name!r} is {state[name].dtype} of shape "
                f"{tuple(state[name].shape)}, not floats of {tuple(shape)}; this is another "
                "model's file."
            )
