"""Both encoders against the published code's values, and packing against one at a time."""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path

import esm
import hugging_face
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny import save_dnabert_s, save_esm2, write_tiny_model

import virnucpro_core as vnp
from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.models.attention import (
    BACKENDS,
    Layout,
    Positions,
    Rotary,
    alibi_slopes,
    backend,
    varlen_attention,
)
from virnucpro_core.models.dnabert_s import DNABERTS
from virnucpro_core.models.esm2 import ESM2
from virnucpro_core.models.packing import plan
from virnucpro_core.models.precision import dtype_of
from virnucpro_core.sequences.tokens import NucleotideTokenizer, Tokens, esm_tokens

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
TOLERANCE = 1e-5


def proteins(lengths: tuple[int, ...], seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["".join(rng.choices(RESIDUES, k=n)) for n in lengths]


@pytest.fixture(scope="module")
def fair_esm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, esm.model.esm2.ESM2]:
    """A small random ESM-2 in fair-esm's own file format, and the model as fair-esm loads it."""
    torch.manual_seed(1)
    model = esm.model.esm2.ESM2(num_layers=3, embed_dim=48, attention_heads=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    config = argparse.Namespace(
        encoder_layers=3, encoder_embed_dim=48, encoder_attention_heads=6, token_dropout=True
    )
    state = {
        f"encoder.{'' if name.startswith('lm_head') else 'sentence_encoder.'}{name}": tensor
        for name, tensor in model.state_dict().items()
    }
    path = tmp_path_factory.mktemp("esm") / "esm2_t3_random.pt"
    torch.save({"cfg": {"model": config}, "model": state}, path)
    data = torch.load(path, weights_only=False)
    loaded, _ = esm.pretrained.load_model_and_alphabet_core(path.stem, data, {"model": {}})
    return path, loaded.eval()


def fair_esm_embedding(model: esm.model.esm2.ESM2, protein: str) -> NDArray[np.float32]:
    """As the original calls it: mean over at most 1024 residues of the last layer."""
    convert = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    _, _, tokens = convert([("protein", protein)])
    with torch.no_grad():
        hidden = model(tokens, repr_layers=[model.num_layers])["representations"]
    residues = min(1024, tokens.shape[1] - 2)
    mean: NDArray[np.float32] = hidden[model.num_layers][0, 1 : residues + 1].mean(0).numpy()
    return mean


@pytest.mark.parametrize("packing", ["false", "true"])
def test_esm2_published_checkpoint_equals_fair_esm(
    fair_esm: tuple[Path, esm.model.esm2.ESM2], packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", packing)
    path, reference = fair_esm
    texts = [*proteins((1, 2, 50, 166, 166, 7, 1023, 1024, 1025, 1300)), "MXBUZO.-", "MK<mask>LV"]
    expected = np.stack([fair_esm_embedding(reference, text) for text in texts])
    assert np.abs(vnp.load_esm2(path).embed(texts, token_budget=700) - expected).max() <= TOLERANCE


def test_esm2_hugging_face_folder_gives_what_the_same_weights_give_in_fair_esm(
    fair_esm: tuple[Path, esm.model.esm2.ESM2], tmp_path: Path
) -> None:
    path, _ = fair_esm
    model = vnp.load_esm2(path)
    hugging_face.save_esm2(tmp_path / "esm2", model)
    texts = proteins((30, 1, 80))
    assert np.array_equal(vnp.load_esm2(tmp_path / "esm2").embed(texts), model.embed(texts))


def test_dnabert_s_published_weights_equal_the_published_code(data: Path) -> None:
    folder = data / "dnabert_s_tiny"
    inputs = json.loads(gzip.decompress((folder / "inputs.json.gz").read_bytes()))
    ids = [row["input_ids"] for row in inputs]
    tokens = Tokens(np.concatenate(ids), np.array(list(map(len, ids))))
    found = vnp.load_dnabert_s(folder).embed_tokens_packed(tokens).numpy()
    assert np.abs(found - np.load(folder / "mean_embeddings.npy")).max() <= TOLERANCE


def test_nucleotide_tokenizer_published_vocabulary_gives_the_published_ids(
    data: Path, shared: Path
) -> None:
    tokenizer = NucleotideTokenizer(shared / "reference" / "dnabert_s" / "tokenizer.json")
    packed = (data / "dnabert_s_tiny" / "inputs.json.gz").read_bytes()
    inputs = json.loads(gzip.decompress(packed))
    tokens = tokenizer([row["sequence"] for row in inputs])
    assert tokens.ids.tolist() == [token for row in inputs for token in row["input_ids"]]
    assert tokens.lengths.tolist() == [len(row["input_ids"]) for row in inputs]


def test_dnabert_s_packing_disabled_gives_the_same_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_dnabert_s(tmp_path / "dnabert_s")
    encoder = vnp.load_dnabert_s(tmp_path / "dnabert_s")
    rng = random.Random(3)
    texts = ["".join(rng.choices("ACGTN", k=n)) for n in (1, 3, 500, 499, 80, 301)]
    packed = encoder.embed(texts)
    monkeypatch.setenv("VIRNUCPRO_DISABLE_PACKING", "true")
    assert np.abs(packed - encoder.embed(texts)).max() <= TOLERANCE


def test_esm_tokens_are_fair_esms() -> None:
    texts = [*proteins((5, 1)), "LAGVSERTIDPKQNFYMHWCXBUZO.-", "A<mask>C"]
    convert = esm.data.Alphabet.from_architecture("ESM-1b").get_batch_converter()
    expected = [convert([("", text)])[2][0].tolist() for text in texts]
    tokens = esm_tokens(texts)
    assert tokens.ids.tolist() == [token for row in expected for token in row]
    assert tokens.lengths.tolist() == list(map(len, expected))


@pytest.mark.parametrize("bad", ["MK*L", "mkl", "MK L", "MKé", "M<pad>K"])
def test_esm_tokens_foreign_letter_is_refused(bad: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"protein {bad!r}… has a letter that ESM-2")):
        esm_tokens(["MKL", "AA", "", "CC", bad, "MKLMKL"])


@pytest.mark.parametrize("heads", [4, 12])
@pytest.mark.parametrize("alibi", [False, True])
def test_varlen_attention_packed_equals_each_sequence_alone(heads: int, alibi: bool) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([5, 1, 33, 33, 70, 2])
    q, k, v = torch.randn(3, int(lengths.sum()), heads, 16)
    slopes = torch.tensor(alibi_slopes(heads)) if alibi else None
    layout = Layout.of(lengths, torch.device("cpu"))
    found = varlen_attention(q, k, v, layout, slopes)
    start = 0
    for length in lengths.tolist():
        part = slice(start, start + length)
        at = torch.arange(length)
        scores = torch.einsum("ihd,jhd->hij", q[part], k[part]) / 4
        if slopes is not None:
            scores -= slopes[:, None, None] * (at[:, None] - at).abs()
        alone = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[part])
        assert (found[part] - alone).abs().max() < 1e-5
        start += length


def test_varlen_attention_neighbours_do_not_leak() -> None:
    lengths = torch.tensor([4, 6])
    q, k, v = torch.randn(3, 10, 2, 8)
    layout = Layout.of(lengths, torch.device("cpu"))
    before = varlen_attention(q, k, v, layout)
    k[4:], v[4:] = torch.inf, torch.nan
    assert torch.equal(varlen_attention(q, k, v, layout)[:4], before[:4])


@pytest.mark.parametrize("mix", [[5, 5, 5, 3, 9, 9], [1], [4, 0, 4]], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_attention_over_runs_of_one_length_equals_the_padded_one(
    mix: list[int], biased: bool
) -> None:
    torch.manual_seed(0)
    layout = Layout.of(torch.tensor(mix), torch.device("cpu"))
    q, k, v = torch.randn(layout.tokens, 3, 2, 8).unbind(1)
    positions: Positions = torch.tensor(alibi_slopes(2)) if biased else Rotary.of(layout, 8)
    expected = BACKENDS["padded"](q.double(), k.double(), v.double(), layout, positions)
    with torch.inference_mode():
        assert backend(q, positions) == "runs"
        found = varlen_attention(q, k, v, layout, positions)
    assert torch.allclose(found.double(), expected, atol=1e-5)


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-6), ("bf16", 2e-2)])
def test_encoders_on_a_cpu_equal_torch_as_it_comes(
    precision: str, allowed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GEMMs by oneDNN, GELU and sums inside, and nothing padded, against the published steps."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = np.array([70, 70, 70, 33, 2, 168])
    tokens = Tokens(rng.integers(4, 24, int(lengths.sum())), lengths)
    for encoder in (ESM2(3, 128, 4), DNABERTS(64, 3, 192, 6, 384)):
        encoder = encoder.eval()
        with monkeypatch.context() as plain:
            plain.setenv("VIRNUCPRO_KERNELS", "torch")
            plain.setenv("VIRNUCPRO_ATTENTION", "padded")
            expected = encoder.embed_tokens_packed(tokens)
        found = encoder.to(dtype_of(precision)).embed_tokens_packed(tokens)
        assert (found - expected).norm() / expected.norm() < allowed


def test_alibi_slopes_are_the_papers() -> None:
    assert alibi_slopes(8) == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(12)[8:] == [2.0 ** -(k / 2) for k in (1, 3, 5, 7)]


def test_esm2_forward_equals_a_padded_batch_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = ESM2(1, 16, 2).eval()
    tokens = esm_tokens(proteins((9,)))
    hidden = model(
        torch.from_numpy(tokens.ids), Layout.of(torch.from_numpy(tokens.lengths), model.device)
    )
    assert hidden.shape == (11, 16)
    normed = F.layer_norm(hidden, (16,))
    assert torch.allclose(normed, hidden, atol=1e-4), "the final norm is applied"


def test_embed_other_precision_leaves_the_encoder_as_it_was(tmp_path: Path) -> None:
    save_esm2(tmp_path / "esm2")
    encoder = vnp.load_esm2(tmp_path / "esm2")
    texts = proteins((40, 12))
    full = encoder.embed(texts)
    half = encoder.embed(texts, precision="bf16")
    assert half.dtype == np.float32
    assert 0 < np.abs(full - half).max() < 0.1
    assert np.array_equal(encoder.embed(texts), full)
    with pytest.raises(InputError, match="precision 'int3' is not known"):
        encoder.embed(texts, precision="int3")


def test_embed_on_its_own_device_by_another_name_makes_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_esm2(tmp_path / "esm2")
    encoder = vnp.load_esm2(tmp_path / "esm2")
    monkeypatch.delattr("copy.deepcopy")
    assert encoder.embed(["MK"], device="cpu:0").shape == (1, 32)


def test_plan_every_row_once_and_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    lengths[7] = 5000
    batches = plan(lengths, 1000)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert batches[0].tolist() == [7], "a sequence over the budget has a batch of its own"
    sums = [int(lengths[rows].sum()) for rows in batches[1:]]
    assert max(sums) <= 1000
    assert sum(sums) / (1000 * len(sums)) > 0.8


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(("save", "load"), [(save_esm2, "esm2"), (save_dnabert_s, "dnabert_s")])
def test_load_encoder_file_missing_or_damaged_is_a_model_error(
    tmp_path: Path, save: object, load: str, name: str
) -> None:
    assert callable(save)
    folder = tmp_path / load
    save(folder)
    loader = getattr(vnp, f"load_{load}")
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=name if name == "config.json" else "safetensors"):
        loader(folder)
    (folder / name).unlink()
    with pytest.raises(ModelError, match="config.json" if name == "config.json" else "weights"):
        loader(folder)


def test_load_dnabert_s_file_for_a_folder_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        vnp.load_dnabert_s(tmp_path / "pytorch_model.bin")


def test_load_encoder_other_models_weights_are_refused(tmp_path: Path) -> None:
    save_esm2(tmp_path / "small", dim=32)
    save_esm2(tmp_path / "large", dim=64)
    (tmp_path / "large" / "config.json").write_bytes(
        (tmp_path / "small" / "config.json").read_bytes()
    )
    with pytest.raises(ModelError, match="says hidden_size 32, its weights have 64"):
        vnp.load_esm2(tmp_path / "large")
    with pytest.raises(ModelError, match="lacks the weight"):
        vnp.load_dnabert_s(tmp_path / "small")


def test_dnabert_s_without_tokenizer_embeds_no_text() -> None:
    with pytest.raises(ModelError, match=r"without tokenizer\.json"):
        DNABERTS(64, 1, 24, 3, 40).embed(["ACGT"])


def test_tokenizer_whose_ids_the_encoder_lacks_is_refused_as_it_is_read(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path).nucleotide / "tokenizer.json"
    with pytest.raises(ModelError, match="one beyond the encoder's 2; fetch the model again"):
        NucleotideTokenizer(path, 2)


def test_tokenizer_that_says_to_truncate_or_to_pad_does_neither(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path).nucleotide / "tokenizer.json"
    plain = NucleotideTokenizer(path)(["ACGTACGTACGTAC", "A"])
    said = json.loads(path.read_text())
    common = {"direction": "Right", "strategy": "LongestFirst"}
    said["truncation"] = {**common, "max_length": 4, "stride": 0}
    kind = {"pad_to_multiple_of": None, "pad_id": 3, "pad_type_id": 0, "pad_token": "[PAD]"}
    said["padding"] = {"strategy": "BatchLongest", "direction": "Right", **kind}
    path.write_text(json.dumps(said))
    found = NucleotideTokenizer(path)(["ACGTACGTACGTAC", "A"])
    assert found.lengths.tolist() == plain.lengths.tolist()
    assert plain.lengths[0] > 4 > plain.lengths[1]
    assert found.ids.tolist() == plain.ids.tolist()


def test_tokenizer_of_nothing_gives_nothing(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path).nucleotide / "tokenizer.json"
    found = NucleotideTokenizer(path, 10**6)([])
    assert (len(found.ids), len(found.lengths)) == (0, 0)
