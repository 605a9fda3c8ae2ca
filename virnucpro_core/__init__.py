"""VirNucPro: find viruses in short metagenomic contigs.

    import virnucpro_core as vnp
    table = vnp.predict("contigs.fasta", model="mini")

What is named here is loaded when it is first used, so that a command that needs no model does not
wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.version import __version__

if TYPE_CHECKING:
    from virnucpro_core.one_process import predict
    from virnucpro_core.published.formats import load_classifier, load_dnabert_s, load_esm2

__all__ = [
    "InputError",
    "ModelError",
    "__version__",
    "load_classifier",
    "load_dnabert_s",
    "load_esm2",
    "predict",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "one_process" if name == "predict" else "published.formats"
    value = getattr(import_module(f"{__name__}.{room}"), name)
    globals()[name] = value
    return value
