"""The classifier: a frame's embedding to the logits of `others` (class 0) and `virus` (class 1)."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from virnucpro_core.errors import ModelError
from virnucpro_core.models.layout import Stored, filled, read_weights, unfilled


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


def classifier_of(stored: Stored) -> MLPClassifier:
    """A classifier in eval mode, float32, on the CPU; its weights are no views of a file.

    Raises ModelError when the file holds something else than weights of these names, of shapes that
    fit together, for two classes.
    """
    hidden, inputs = stored.matrix("hidden_layer.weight")
    with unfilled():
        model = MLPClassifier(inputs, hidden)
    if foreign := sorted(stored.state.keys() - model.state_dict().keys()):
        raise ModelError(f"{stored.path}: is no classifier, {foreign[0]!r:.80} is not part of one.")
    model = copy.deepcopy(filled(model, stored))
    if (model.state_dict()["bn1.running_var"] < 0).any():
        raise ModelError(f"{stored.path}: is no classifier, a variance in it is negative.")
    return model.requires_grad_(False)


def load_classifier(path: Path) -> MLPClassifier:
    """Load the classifier of a model in the store, safetensors; its output are logits.

    Raises ModelError when the file is missing, damaged or no classifier.
    """
    return classifier_of(Stored(path, {}, read_weights(path)))
