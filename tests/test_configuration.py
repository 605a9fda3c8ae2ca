"""A run's settings: where they come from, what is refused, and what results say of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from test_nextflow import ROOT
from test_options import Run, sees

from virnucpro_core import cli, one_process
from virnucpro_core.cli.configuration import known_keys, variable
from virnucpro_core.results.criteria import Asked

pytestmark = pytest.mark.usefixtures("threads")

Ask = Callable[..., str]
KNOWN = known_keys(typer.Context(typer.main.get_command(cli.app)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: mini\n"
        "embedding.precision: bf16\n"
        "calls: {preset: sensitive, min_evidence: 200, min_length: ~}\n"
        "translate:\n"
        "  genetic_code: 15\n"
    )
    return path


def shown(ask: Ask, *words: object) -> dict[str, tuple[Any, str]]:
    """What `config show` prints: of each key its value and where that comes from."""
    text = ask("config", "show", *words)
    sources = [line.partition("  # ")[2] for line in text.splitlines()]
    values = yaml.safe_load(text)
    return {key: (values[key], said) for key, said in zip(values, sources, strict=True)}


@sees("", "--config", "--set")
def test_config_show_says_each_value_and_where_it_comes_from(
    ask: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(shown(ask)) == list(KNOWN)
    assert {source.partition(" ")[0] for _, source in shown(ask).values()} == {"default"}
    found = shown(ask, "--config", file)
    assert found["model"] == ("mini", f"{file}, line 1")
    assert found["calls.min_evidence"] == (200, f"{file}, line 3")
    assert found["translate.genetic_code"] == ("15", f"{file}, line 5")
    assert found["calls.min_length"] == (0, "default")
    assert found["embedding.device"] == ("auto", "default")
    monkeypatch.setenv("VIRNUCPRO_EMBEDDING_PRECISION", "fp16")
    monkeypatch.setenv("VIRNUCPRO_MODEL", "virnucpro-300")
    monkeypatch.setenv("VIRNUCPRO_CALLS_PRESET", "")
    found = shown(ask, "--config", file, "--set", "model=virnucpro-500", "--threads", 1)
    assert found["embedding.precision"] == ("fp16", "$VIRNUCPRO_EMBEDDING_PRECISION")
    assert found["model"] == ("virnucpro-500", "--set")
    assert found["calls.preset"] == ("sensitive", f"{file}, line 3")
    assert found["threads"] == (1, "--threads")
    assert shown(ask, "--config", file, "--set", "model=")["model"] == ("mini", "default")


def test_settings_before_and_behind_the_command_count_alike(
    ask: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_THREADS", "2")
    assert shown(ask)["threads"] == (2, "$VIRNUCPRO_THREADS")
    words = ["--config", file, "--set", "model=a", "--threads", 1, "config", "show"]
    before = yaml.safe_load(ask(*words, "--set", "calls.prevalence=0.5"))
    names = ("model", "calls.prevalence", "calls.preset", "threads")
    assert [before[name] for name in names] == ["a", "0.5", "sensitive", 1]


def test_what_config_show_prints_is_a_configuration(ask: Ask, file: Path, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(ask("config", "show", "--config", file))
    before, after = (shown(ask, "--config", path) for path in (file, tmp_path / "again.yaml"))
    assert {key: value for key, (value, _) in before.items()} == {
        key: value for key, (value, _) in after.items()
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: mini\nmodle: x", "run.yaml, line 2: modle is no setting; did you mean model?"),
        ("calls:\n  preest: x", "line 2: calls.preest is no setting; did you mean calls.preset?"),
        ("min_score: 0.5", "line 1: min_score is no setting; did you mean calls.min_score?"),
        ("zzz: 1", "line 1: zzz is no setting; `virnucpro config show` lists what there is."),
        ("embedding: {precision: int8}", "line 1: embedding.precision: int8: 'int8' is not one of"),
        ("calls.min_length: many", "line 1: calls.min_length: many: Input should be a valid int"),
        ("calls.min_length: 1.5", "line 1: calls.min_length: 1.5: Input should be a valid int"),
        ("embedding.gpus: 0", "line 1: embedding.gpus: 0: Input should be greater than or equal"),
        ("translate: {genetic_code: 7}", "line 1: genetic code '7': Biopython has no such table"),
        ("model: [a, b]", "line 1: model takes one value; give it as model: VALUE."),
        ("model: {name: a}", "line 1: model takes one value"),
        ("calls: 3", "line 1: calls is no setting; `virnucpro config show` lists"),
        ("model: a\nmodel: b", "line 2: model is given twice; leave one out."),
        ("calls.preset: a\ncalls: {preset: b}", "line 2: calls.preset is given twice"),
        ("calls: &a {x: *a}", "line 1: calls.x is no setting"),
        ("embeding:\n  gpus: 1", "2: embeding.gpus is no setting; did you mean embedding.gpus?"),
        ("? [a]\n: 2", "line 1: a list or map is no key; give embedding.precision: bf16"),
        ("a: &a {b: *a}", "line 1: a.b is no setting"),
        ("a: [", "line 1: is no YAML (expected the node content, but found '<stream end>')"),
        ("model", "run.yaml: holds no settings; give lines such as embedding.precision: bf16"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_line(
    text: str, says: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    for words in (["config", "show"], ["predict", "absent.fa", "-o", "out"]):
        code, out, err = run(*words, "--config", "run.yaml")
        assert (code, out) == (2, "")
        assert err.startswith("virnucpro: run.yaml")
        assert says in err
        assert len(err.splitlines()) == 1


def test_a_group_without_lines_sets_nothing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("calls:\n  # preset: sensitive\nmodel: own\n")
    code, out, _ = run("config", "show", "--config", tmp_path / "run.yaml")
    assert code == 0
    assert re.search(r"^model: own +# .*run\.yaml, line 3$", out, re.MULTILINE)
    assert re.search(r"^calls\.preset: null +# default", out, re.MULTILINE)


def test_a_setting_that_does_not_fit_is_refused_wherever_it_is(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: object) -> str:
        code, out, err = run("config", "show", *words)
        assert (code, out) == (2, "")
        return str(err)

    assert "--set: calls.preest is no setting; did you mean calls.preset?" in refused(
        *("--set", "calls.preest=x")
    )
    assert "--set: calls.preset: x: 'x' is not one of" in refused("--set", "calls.preset=x")
    assert "--min-score 7: give a number above 0" in refused("--set", "calls.min_score=7")
    assert "--prevalence 2: give auto, or" in refused("--set", "calls.prevalence=2")
    assert "--set calls.preset: give KEY=VALUE" in refused("--set", "calls.preset")
    assert "--set =3: give KEY=VALUE" in refused("--set", "=3")
    assert "none.yaml: no such file" in refused("--config", tmp_path / "none.yaml")
    assert "cannot be read (Is a directory)" in refused("--config", tmp_path)
    monkeypatch.setenv("VIRNUCPRO_CALLS_PRESET", "x")
    assert "$VIRNUCPRO_CALLS_PRESET: calls.preset: x: 'x' is not" in refused()
    monkeypatch.delenv("VIRNUCPRO_CALLS_PRESET")
    monkeypatch.setenv("VIRNUCPRO_CALLS_PREEST", "x")
    assert "VIRNUCPRO_CALLS_PREEST is no setting; did you mean VIRNUCPRO_CALLS_PRESET?" in refused()


def test_an_empty_file_sets_nothing(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert shown(ask, "--config", tmp_path / "run.yaml") == shown(ask)


def test_an_option_wins_over_set_environment_and_file(
    ask: Ask, file: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIRNUCPRO_CALLS_MIN_EVIDENCE", "30")
    monkeypatch.setenv("VIRNUCPRO_CALLS_MIN_LENGTH", "40")
    words = ["predict", three, "-o", tmp_path / "out", "--config", file]
    words += ["--set", "calls.min_evidence=20", "--set", "embedding.precision=fp32"]
    ask(*words, "--precision", "fp16", "--threads", 1)
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert about["configuration"] == {
        "threads": {"value": 1, "from": "--threads"},
        "model": {"value": "mini", "from": f"{file}, line 1"},
        "models_dir": {"value": None, "from": "default"},
        "translate.genetic_code": {"value": "15", "from": f"{file}, line 5"},
        "embedding.device": {"value": "auto", "from": "default"},
        "embedding.precision": {"value": "fp16", "from": "--precision"},
        "embedding.token_budget": {"value": None, "from": "default"},
        "embedding.gpus": {"value": None, "from": "default"},
        "calls.preset": {"value": "sensitive", "from": f"{file}, line 3"},
        "calls.min_score": {"value": None, "from": "default"},
        "calls.max_fdr": {"value": None, "from": "default"},
        "calls.min_length": {"value": 40, "from": "$VIRNUCPRO_CALLS_MIN_LENGTH"},
        "calls.min_evidence": {"value": 20, "from": "--set"},
        "calls.prevalence": {"value": "auto", "from": "default"},
    }
    assert (about["model"], about["genetic_code"], about["precision"]) == ("mini", "15", "fp16")
    asked = {"preset": "sensitive", "min_evidence": 20, "min_length": 40}
    assert {name: about["criteria"][name] for name in asked} == asked


def test_the_same_settings_from_elsewhere_are_finished_already(
    ask: Ask, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", three, "-o", tmp_path / "out"]
    ask(*words, "--model", "mini", "--min-score", "0.5")
    before = (tmp_path / "out" / "summary.json").read_bytes()
    monkeypatch.setenv("VIRNUCPRO_MODEL", "mini")
    said = ask(*words, "--set", "calls.min_score=0.5", "--threads", 1)
    assert "is finished already" in said
    assert (tmp_path / "out" / "summary.json").read_bytes() == before

    def embed(*_: object, **__: object) -> None:
        raise AssertionError("embedded again")

    monkeypatch.setattr(one_process, "embed", embed)
    ask("call", tmp_path / "out", "--set", "calls.min_score=0.25")
    settings = json.loads((tmp_path / "out" / "summary.json").read_text())["configuration"]
    assert settings["calls.min_score"] == {"value": 0.25, "from": "--set"}
    assert settings["model"] == {"value": "mini", "from": "--model"}


def test_what_is_nearer_puts_out_what_it_excludes(
    ask: Ask, run: Run, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.yaml").write_text("model: mini\ncalls.preset: conservative\n")
    config = ["--config", tmp_path / "run.yaml"]
    ask("predict", three, "-o", tmp_path / "out", *config, "--min-score", "0.25")
    about = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (about["criteria"]["preset"], about["criteria"]["min_score"]) == (None, 0.25)
    found = shown(ask, *config, "--set", "calls.max_fdr=0.1")
    assert found["calls.preset"] == (None, "default (balanced)")
    monkeypatch.setenv("VIRNUCPRO_CALLS_MIN_SCORE", "0.5")
    assert shown(ask, "--set", "calls.preset=balanced")["calls.min_score"] == (None, "default")
    monkeypatch.delenv("VIRNUCPRO_CALLS_MIN_SCORE")
    both = ["--set", "calls.preset=balanced", "--set", "calls.min_score=0.5"]
    code, _, err = run("call", tmp_path / "out", *both)
    assert code == 2
    assert "give one of the two" in err
    ask("translate", three, "-o", tmp_path / "f.parquet", *config, "--window", 60)


def test_a_command_without_settings_takes_none(run: Run, file: Path) -> None:
    code, _, err = run("doctor", "--config", file)
    assert code == 2
    assert "No such option: --config" in err
    for words in (["--config", file], ["--set", "model=mini"]):
        code, _, err = run(*words, "doctor")
        assert code == 2
        assert "--config and --set are for the commands of a run" in err


def test_names_are_those_of_the_options_and_of_the_pipeline() -> None:
    """And so are what they take, and what they are where nothing is said."""
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())["$defs"]
    rules = {
        name: rule
        for group in ("classification", "calls", "execution")
        for name, rule in schema[group]["properties"].items()
    }
    own = {key.rpartition(".")[2]: (key, option) for key, option in KNOWN.items()}
    assert len(own) == len(KNOWN)
    assert rules.keys() - own.keys() == {"on_bad_sample", "help"}, "of the pipeline alone"
    assert own.keys() - rules.keys() == {"threads", "token_budget", "gpus"}, "Nextflow's, or none"
    assert set(Asked.__annotations__) == {
        name for name, (key, _) in own.items() if key.startswith("calls.")
    }
    for name, (key, option) in own.items():
        assert option.name == name
        assert option.opts == [f"--{name.replace('_', '-')}"]
        assert variable(key).removeprefix("VIRNUCPRO_").lower() == key.replace(".", "_")
    for name, rule in rules.items():
        if name not in own:
            continue
        option = own[name][1]
        kind = option.type_descriptor.annotation
        assert list(option.type_descriptor.choices or ()) == rule.get("enum", [])
        assert rule["type"] == {int: "integer", float: "number"}.get(kind, "string")
        if kind is int:
            assert (option.min, option.max) == (rule.get("minimum"), rule.get("maximum"))
        if name != "model":  # the pipeline's is the published one
            assert option.default == rule.get("default")
