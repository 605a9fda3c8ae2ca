"""The one form in which a model's parts lie on disk: safetensors, under our modules' names.

    dnabert_s/   config.json   {"encoder": "dnabert_s", "heads": 12, "eps": 1e-12}
                 tokenizer.json, model.safetensors
    esm2/        config.json   {"encoder": "esm2", "heads": 40, "token_dropout": true}
                 model.safetensors
    classifier.safetensors

All other sizes are those of the weights, so no configuration can ask for a network of others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from virnucpro_core.errors import ModelError, need_room
from virnucpro_core.files import blame_machine
from virnucpro_core.reading import read_object, unreadable

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
FLOATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
"""What a weight may be, by its name in safetensors."""

_LAYER = re.compile(r"layers\.(\d+)\.")
_Module = TypeVar("_Module", bound=nn.Module)


@dataclass(frozen=True)
class Stored:
    """A part of a model as files have it: its weights under our names, and what they don't tell.

    path: the file or folder that a refusal names. Tensors are mapped, so they cost nothing until
    they are read. file: to be linked to where it is, byte by byte, what would be written.
    """

    path: Path
    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    file: Path | None = None

    def matrix(self, name: str) -> tuple[int, int]:
        """Rows and columns of a weight; ModelError when it is missing, empty or no matrix."""
        weight = self.state.get(name)
        if weight is None or weight.ndim != 2 or not weight.numel():
            raise ModelError(f"{self.path}: lacks the weight {name!r}, or it is no matrix.")
        return weight.shape[0], weight.shape[1]

    @property
    def layers(self) -> int:
        """How many layers the weights are of."""
        return len({found[1] for name in self.state if (found := _LAYER.match(name))})

    def option(self, name: str, fits: Callable[[Any], bool]) -> Any:
        """A value of the configuration; ModelError when it is missing or does not fit."""
        value = self.config.get(name)
        if not fits(value):
            raise ModelError(f"{self.path}: its {name!r} is {value!r:.40}; fetch the model again.")
        return value

    def heads(self, dim: int, each: int = 1) -> int:
        """The number of attention heads, which share `dim` values in multiples of `each`."""
        heads = self.config.get("heads")
        if type(heads) is not int or heads < 1 or dim % (each * heads):  # True is an int too
            raise ModelError(
                f"{self.path}: its configuration says {heads!r:.40} heads, which do not share "
                f"{dim} values; fetch the model again."
            )
        return heads


def read_weights(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a safetensors file, mapped; ModelError when it is damaged or none."""
    need_room()
    try:
        with path.open("rb"):  # whose errors say what is wrong, which load_file's do not
            return dict(load_file(path))
    except OSError as error:
        raise unreadable(path, error) from None
    except (SafetensorError, ValueError, RuntimeError, LookupError, TypeError) as error:
        blame_machine(error, path)
        raise ModelError(
            f"{path}: is no safetensors file, or a damaged one ({error}); fetch it again."
        ) from None


def read_encoder(folder: Path, encoder: str) -> Stored:
    """An encoder of a model in the folder; ModelError when it is damaged or another encoder's."""
    config = read_object(folder / CONFIG)
    if config.get("encoder") != encoder:
        raise ModelError(f"{folder / CONFIG}: describes no {encoder}; import the model again.")
    return Stored(folder, config, read_weights(folder / WEIGHTS))


class _Undrawn(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return None if func is nn.init.normal_ else func(*args, **(kwargs or {}))


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made in here have shapes alone, on the meta device.

    Their embeddings are not drawn, which on that device imports all of torch._dynamo: a second.
    """
    with torch.device("meta"), _Undrawn():
        yield


def checked(
    module: nn.Module, stored: Stored, device: str | torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a module, out of a file, one at a time; on the device, if one is named.

    Raises ModelError for a weight that is missing, of another shape or kind, or not finite.
    """
    expected = module.state_dict()
    if missing := sorted(expected.keys() - stored.state.keys()):
        raise ModelError(
            f"{stored.path}: lacks the weight {missing[0]!r}"
            f"{f' and {len(missing) - 1} more' if missing[1:] else ''}; fetch the model again."
        )
    for name, want in expected.items():
        have = stored.state[name]
        alike = (have.dtype in FLOATS) if want.is_floating_point() else not have.dtype.is_complex
        if have.shape != want.shape or not alike:
            raise ModelError(
                f"{stored.path}: weight {name!r} is {have.dtype} of shape {tuple(have.shape)}, not "
                f"{want.dtype} of {tuple(want.shape)}; this is another model's file."
            )
        have = have.to(device=device)  # a GPU looks at its values faster
        # Least and greatest carry NaN and infinity, without a mask as large as the tensor.
        bounds = torch.aminmax(have) if want.is_floating_point() else ()
        if not all(torch.isfinite(bound) for bound in bounds):
            raise ModelError(
                f"{stored.path}: holds values in {name!r} that are not finite; fetch it again."
            )
        yield name, have


def filled(
    module: _Module,
    stored: Stored,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> _Module:
    """An `unfilled` module with its weights, in eval mode, floats on the device in the dtype asked.

    The file's tensors are mapped: each goes straight to its place, with no copy in between, and is
    checked and converted there. Raises ModelError as `checked` does.
    """
    kinds = {name: want.dtype for name, want in module.state_dict().items()}
    placed = {
        name: have.to(dtype if kinds[name].is_floating_point else kinds[name])
        for name, have in checked(module, stored, device)
    }
    module.load_state_dict(placed, assign=True)
    return module.eval()
