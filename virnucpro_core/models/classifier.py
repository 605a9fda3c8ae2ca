"""The classifier: a frame's embedding to the logits of `others` (class 0) and `virus` (class 1)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from virnucpro_core.errors import ModelError
from virnucpro_core.models.checkpoints import read_state_dict


class MLPClassifier(nn.Module):
    """Linear → batch norm → ReLU → dropout → linear; names as in the original's checkpoints."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_layer = nn.Linear(input_dim, hidden_dim)
        self.bn1 = nn.BatchNorm1d(hidden_dim)
        self.dropout = nn.Dropout(0.5)
        self.output_layer = nn.Linear(hidden_dim, 2)

    @property
    def input_dim(self) -> int:
        return self.hidden_layer.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (N, input_dim) → logits (N, 2)."""
        return self.output_layer(self.dropout(F.relu(self.bn1(self.hidden_layer(x)))))  # type: ignore[no-any-return]


def load_classifier(path: str | Path) -> MLPClassifier:
    """Load a classifier: the module that the original pickles whole, a state dict, or safetensors.

    Returns a float32 module in eval mode, on the CPU, whose output are logits. Raises ModelError
    when the file is not readable by the restricted loader, or holds something else than weights of
    these names, of shapes that fit together, for two classes.
    """
    path = Path(path)
    state = read_state_dict(path)
    weight = state.get("hidden_layer.weight")
    if weight is None or weight.ndim != 2 or not weight.numel():
        raise ModelError(f"{path}: has no matrix hidden_layer.weight, so it is no classifier.")
    with torch.device("meta"):
        model = MLPClassifier(weight.shape[1], weight.shape[0])
    expected = model.state_dict()
    if wrong := sorted(state.keys() ^ expected.keys()):
        raise ModelError(
            f"{path}: is no classifier, the weight {wrong[0]!r} is "
            f"{'missing' if wrong[0] in expected else 'not part of one'}."
        )
    for name, want in expected.items():
        have = state[name]
        if have.shape != want.shape or have.is_floating_point() != want.is_floating_point():
            raise ModelError(
                f"{path}: is no classifier of two classes, {name} is {have.dtype} of shape "
                f"{tuple(have.shape)} where {tuple(want.shape)} belongs."
            )
    if (state["bn1.running_var"] < 0).any():
        raise ModelError(f"{path}: is no classifier, bn1.running_var holds a negative variance.")
    # Cloned: the state may be a view of the file, which can go away.
    own = {name: state[name].to(want.dtype, copy=True) for name, want in expected.items()}
    model.load_state_dict(own, assign=True)
    return model.requires_grad_(False).eval()
