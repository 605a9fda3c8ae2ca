"""The classifier computes what the original's does, and loads nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from virnucpro_core.errors import ModelError
from virnucpro_core.models.classifier import MLPClassifier
from virnucpro_core.published.checkpoints import read_state_dict
from virnucpro_core.published.formats import load_classifier

DATA = Path(__file__).parent / "data/classifier"
ORIGINAL = DATA / "original_style_model.pth"


def test_probabilities_equal_the_originals() -> None:
    expected = np.load(DATA / "expected.npz")
    logits = load_classifier(str(ORIGINAL))(torch.from_numpy(expected["x"]))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected["probabilities"], atol=1e-6)


def test_module_state_dict_and_safetensors_load_alike(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in read_state_dict(ORIGINAL).items()}
    torch.save(state, tmp_path / "state.pth")
    save_file(state, tmp_path / "state.safetensors")
    x = torch.randn(5, 3328)
    want = load_classifier(ORIGINAL)(x)
    for name in ("state.pth", "state.safetensors"):
        model = load_classifier(tmp_path / name)
        assert not model.training
        assert model.input_dim == 3328
        assert not any(p.requires_grad for p in model.parameters())
        assert torch.equal(model(x), want)


def test_the_loaded_module_outlives_its_file(tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(ORIGINAL.read_bytes())
    model = load_classifier(tmp_path / "m.pth")
    with (tmp_path / "m.pth").open("r+b") as handle:
        handle.truncate(0)
    assert torch.isfinite(model(torch.ones(2, 3328))).all()


def broken(name: str) -> dict[str, torch.Tensor]:
    state = MLPClassifier(6, 4).state_dict()
    match name:
        case "another name":
            state["hidden.weight"] = state.pop("hidden_layer.weight")
        case "one missing":
            del state["bn1.running_mean"]
        case "one too many":
            state["extra.weight"] = torch.ones(2)
        case "three classes":
            state["output_layer.weight"] = torch.ones(3, 4)
            state["output_layer.bias"] = torch.ones(3)
        case "shapes that do not fit":
            state["bn1.weight"] = torch.ones(5)
        case "whole numbers":
            state["output_layer.weight"] = torch.ones(2, 4).long()
        case "not finite":
            state["output_layer.bias"][0] = torch.nan
        case "a vector":
            state["hidden_layer.weight"] = torch.ones(4)
        case "a negative variance":
            state["bn1.running_var"][0] = -1
    return state


@pytest.mark.parametrize(
    "name",
    [
        "another name",
        "one missing",
        "one too many",
        "three classes",
        "shapes that do not fit",
        "whole numbers",
        "not finite",
        "a vector",
        "a negative variance",
    ],
)
def test_weights_of_something_else_are_refused(name: str, tmp_path: Path) -> None:
    torch.save(broken(name), tmp_path / "broken.pth")
    with pytest.raises(ModelError, match=r"broken\.pth"):
        load_classifier(tmp_path / "broken.pth")


def test_a_whole_set_of_our_own_loads(tmp_path: Path) -> None:
    state = MLPClassifier(6, 4).half().state_dict()
    state["bn1.running_var"][0] = 0  # of a unit that was never at work
    torch.save(state, tmp_path / "half.pth")
    assert load_classifier(tmp_path / "half.pth").output_layer.weight.dtype == torch.float32
