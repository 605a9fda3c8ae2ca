"""The pipeline's parameters: refused, or followed to what each of them changes."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from test_nextflow import BARE, DEMO, NEXTFLOW, ROOT, nextflow, pipeline, tasks

import virnucpro_core as vnp

Test = TypeVar("Test", bound=Callable[..., None])

pytestmark = pytest.mark.skipif(NEXTFLOW is None, reason="no Nextflow: run make setup")

PROVED: set[str] = set()
"""The parameters that a test here follows from the command line to what they change."""


def effect_of(*parameters: str) -> Callable[[Test], Test]:
    """Mark a test as one that would fail if the pipeline dropped any of these parameters."""
    PROVED.update(parameters)
    return lambda test: test


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--input", "none.fa"], "--input none.fa: no such file"),
        (["--shard-bp", "5"], "Unknown parameter --shardBp: did you mean --shard_bp?"),
        (["--outdr", "x"], "Unknown parameter --outdr: did you mean --outdir?"),
        (["--shard_bp", "many"], "--shard_bp many: give an integer."),
        (["--min_score", "2"], "--min_score 2: give 1 or less."),
        (["--min_score", "0"], "--min_score 0: give more than 0."),
        (["--preset", "bold"], "--preset bold: give one of sensitive, balanced, conservative."),
        (["--preset", "balanced", "--min_score", "0.4"], "--min_score 0.4: a preset is such thr"),
        (["--prevalence", "1.5"], "--prevalence 1.5: this does not fit."),
        (["--models_dir", "gone"], "--models_dir gone: no such folder"),
        (["--models_dir", ".", "--model", "other"], "--model other: is not in .; bring it in with"),
        (["--model", "virnucpro-500"], "--model virnucpro-500: name the folder of models that has"),
        (["--model", "a b"], "--model a b: this does not fit. Model: the small mini that com"),
        (["--publish_dir_mode", "move"], "--publish_dir_mode move: give one of copy,"),
        (["--checkpoint_dir", "s3://b/c"], "s3://b/c: this does not fit. Where embed tasks keep"),
        (["-params-file", "typo.yml"], "Unknown parameter --outdr: did you mean --outdir?"),
        (["--genetic_code", "7"], "--genetic_code 7: this does not fit. Genetic code, by NCBI's"),
        (["--device", "tpu"], "--device tpu: this does not fit. What an embed task may use"),
        (["--precision", "int8"], "--precision int8: give one of fp32, bf16, fp16, fp8."),
    ],
)
def test_bad_parameter_is_refused_before_anything_runs(
    words: list[str], sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "typo.yml").write_text("outdr: x\n")
    run = pipeline(tmp_path, *words, VIRNUCPRO_MODELS="")
    assert run.returncode != 0
    assert sentence in run.stdout
    assert "Submitted process" not in run.stdout


def test_parameters_of_an_institutions_configuration_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "site.config").write_text(
        "params { config_profile_contact = 'me'\n max_memory = 64.GB }\n"
    )
    words = ["-c", "site.config", "-stub", "--outdir", "there", "--device=cpu"]
    run = pipeline(tmp_path, *words, NXF_OPTS="-Dfile.encoding=US-ASCII")
    assert run.returncode == 0, run.stdout
    assert "Nextflow's Java writes US-ASCII, which cuts its report" in run.stdout
    assert "mean nothing here: config_profile_contact, max_memory." in run.stdout
    assert "The model is mini, the small one that comes along" in run.stdout, "as none is named"


def test_schema_and_configuration_agree_on_parameters_and_defaults() -> None:
    flat = nextflow(ROOT, "config", "-flat").stdout.splitlines()
    configured = dict(
        line.removeprefix("params.").split(" = ", 1) for line in flat if line.startswith("params.")
    )
    groups = json.loads((ROOT / "nextflow_schema.json").read_text())["$defs"].values()
    defaults = {
        name: json.dumps(rule.get("default", False if rule["type"] == "boolean" else None)).replace(
            '"', "'"
        )
        for group in groups
        for name, rule in group["properties"].items()
    }
    assert configured == defaults


def test_every_parameter_has_what_a_launch_form_shows() -> None:
    schema = json.loads((ROOT / "nextflow_schema.json").read_text())
    assert schema["allOf"] == [{"$ref": f"#/$defs/{name}"} for name in schema["$defs"]]
    for group in schema["$defs"].values():
        assert {"title", "description", "fa_icon", "properties"} <= group.keys()
        assert all(
            {"type", "description", "fa_icon"} <= r.keys() for r in group["properties"].values()
        )
    sheet = ROOT / schema["$defs"]["input_output_options"]["properties"]["input"]["schema"]
    header = (DEMO / "samplesheet.csv").read_text().splitlines()[0]
    assert list(json.loads(sheet.read_text())["items"]["properties"]) == header.split(",")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("parameters.yml", "outdir: there\nshard_bp: 20000\nmin_score: 0.25\n"),
        ("parameters.json", '{"outdir": "there", "shard_bp": 20000, "min_score": 0.25}'),
    ],
)
def test_parameters_out_of_a_file(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    run = pipeline(tmp_path, "-stub", "-params-file", name)
    assert run.returncode == 0, run.stdout
    assert (tmp_path / "there" / "phages" / "contigs.tsv").exists()
    assert "Calls:  there/*/contigs.tsv" in run.stdout


@effect_of("help")
def test_help_names_every_parameter(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "--help")
    assert run.returncode == 0
    assert "--min_score" in run.stdout


def commands(folder: Path, stage: str) -> list[str]:
    """The scripts of a stage's tasks, of all tries, with what Nextflow asked the scheduler for."""
    found = folder.glob("work/*/*/.command.run")
    mine = [task.parent for task in found if f"VIRNUCPRO_{stage} (" in task.read_text()]
    return [(t / ".command.run").read_text() + (t / ".command.sh").read_text() for t in mine]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was told much, with names that a shell would mangle."""
    folder = tmp_path_factory.mktemp("told")
    shutil.copytree(Path(vnp.__file__).parent / "mini", folder / "models" / "own")
    about = folder / "models" / "own" / "model.json"
    about.write_text(about.read_text().replace('"mini"', '"own"'))
    shutil.copy(ROOT / "tests" / "data" / "nf" / "phages.fasta", folder / "a $HOME's.fa")
    (folder / "there" / "old").mkdir(parents=True)
    (folder / "there" / "old" / "summary.json").touch()
    words = ["--input", "a $HOME's.fa", "--outdir", "there", "--publish_dir_mode", "symlink"]
    words += ["--model", "own", "--models_dir", "models", "--min_score", "0.75"]
    words += ["--min_length", "400", "--min_evidence", "300"]
    words += ["--max_fdr", "0.9", "--prevalence", "0.25"]
    words += ["--shard_bp", "600", "--precision", "bf16", "--checkpoint_dir", "it's kept"]
    words += ["--gpus_per_task", "3", "-profile", "gpu", "--genetic_code", "15"]
    run = nextflow(folder, "run", f"{ROOT}/main.nf", *words, **BARE)
    assert run.returncode == 0, run.stdout
    (folder / "said.txt").write_text(run.stdout)
    return folder


@effect_of("input", "outdir", "publish_dir_mode", "shard_bp")
def test_input_is_cut_and_published_as_told(told: Path) -> None:
    assert (told / "there" / "a_HOME_s").is_symlink()
    assert tasks(told / "there", "COMPLETED")["TRANSLATE"] == 2


@effect_of("model", "models_dir", "min_score", "min_length", "min_evidence", "precision")
@effect_of("max_fdr", "prevalence")
@effect_of("genetic_code")
def test_model_rule_and_precision_are_those_of_the_results(told: Path) -> None:
    summary = json.loads((told / "there" / "a_HOME_s" / "summary.json").read_text())
    assert summary["model"] == "own"
    asked = {"min_score": 0.75, "min_length": 400, "min_evidence": 300}
    asked |= {"max_fdr": 0.9, "prevalence": 0.25}
    assert {name: summary["criteria"][name] for name in asked} == asked
    assert (summary["genetic_code"], summary["precision"]) == ("15", "bf16")


@effect_of("preset")
def test_preset_is_that_of_the_results(tmp_path: Path) -> None:
    run = pipeline(tmp_path, "--preset", "conservative")
    assert run.returncode == 0, run.stdout
    criteria = json.loads((tmp_path / "results/phages/summary.json").read_text())["criteria"]
    assert (criteria["preset"], criteria["max_fdr"]) == ("conservative", 0.05)


def test_error_rate_of_a_model_without_a_calibration_is_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    shutil.copytree(Path(vnp.__file__).parent / "mini", tmp_path / "models" / "plain")
    path = tmp_path / "models" / "plain" / "model.json"
    about = json.loads(path.read_text())
    del about["contig_rule"]
    path.write_text(json.dumps({**about, "name": "plain"}))
    words = ["--model", "plain", "--models_dir", "models"]
    for name, value in (("max_fdr", "0.1"), ("prevalence", "0.2")):
        run = pipeline(tmp_path, *words, f"--{name}", value)
        assert run.returncode != 0
        assert f"--{name} {value}: the model plain has no calibration" in run.stdout
        assert not list(tmp_path.glob("work/*/*/.command.run"))


@effect_of("checkpoint_dir", "gpus_per_task")
def test_embed_is_told_where_to_keep_and_what_to_take(told: Path) -> None:
    embeds = commands(told, "EMBED")
    kept = str(told / "it's kept")
    assert Path(kept).is_dir()
    quoted = kept.replace("'", "'\\''")
    assert len(embeds) == 2
    assert all(f"--checkpoint-dir '{quoted}'" in embed for embed in embeds)
    assert all("--gpus 3 " in embed for embed in embeds)


def test_results_of_an_earlier_run_are_told_of_and_kept(told: Path) -> None:
    said = (told / "said.txt").read_text()
    assert "there has results of earlier runs that this run's report does not include: old." in said
    page = (told / "there" / "report" / "report.html").read_text()
    assert "results of earlier runs that it does not include: old.<" in page
    assert (told / "there" / "old" / "summary.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_profile_without_a_gpu_is_said_at_start_and_end(told: Path) -> None:
    said = (told / "said.txt").read_text()
    start = said.index(
        "No GPU is seen on this machine, so the CPU embeds, in spite of -profile gpu."
    )
    assert start < said.index("Submitted process")
    assert re.search(
        "so the CPU embeds a_HOME_s. With a model as large as the published ones, "
        r"\d+ CPU cores take about \d+ (seconds|minutes) to embed it\.",
        said,
    )
    assert "-profile gpu, but a CPU embedded a_HOME_s: no GPU was seen there." in said


def test_reports_of_a_run_without_a_locale_are_whole(told: Path) -> None:
    info = told / "there" / "pipeline_info"
    assert all(
        (info / name).read_text().rstrip().endswith("</html>")
        for name in ("report.html", "timeline.html", "dag.html")
    )
    assert all("PYTHONUTF8" in embed for embed in commands(told, "EMBED"))


@effect_of("device", "device_class", "on_bad_sample")
def test_device_and_what_a_refusal_means_reach_their_tasks(tmp_path: Path) -> None:
    """One run is told to stop at a refused sample, one to embed on what is not there."""
    (tmp_path / "bad.fa").write_text(">p\nMKLVWERTYHIPLKDFE\n")
    base = ["run", f"{ROOT}/main.nf", "--model", "mini", "--device_class", "h100"]
    run = nextflow(tmp_path, *base, "--input", "bad.fa", "--on_bad_sample", "stop")
    assert run.returncode != 0
    assert "LEFT_OUT" not in run.stdout
    (split,) = commands(tmp_path, "SPLIT")
    assert "split --model mini --device-class h100 " in split
    run = nextflow(
        tmp_path, *base, "--input", f"{ROOT}/tests/data/nf/phages.fasta", "--device", "cuda:77"
    )
    assert "device 'cuda:77' is not there" in run.stdout


# Stand for Slurm: jobs run at once, on this machine.
SBATCH = """#!/bin/bash
bash "${@: -1}" > /dev/null 2>&1 &
echo "Submitted batch job $!"
"""


@effect_of("queue", "gpu_queue", "account", "cluster_options")
def test_scheduler_is_asked_as_told(tmp_path: Path) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", "#!/bin/sh\n"), ("scancel", "#!/bin/sh\n")):
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    (tmp_path / "often.config").write_text(
        "executor { pollInterval = '500 ms'\n queueStatInterval = '1 sec' }\n"
    )
    words = ["--queue", "normal", "--gpu_queue", "fast", "--account", "lab", "--gpus_per_task", "2"]
    words += ["--cluster_options=--qos=long", "--model", "mini"]
    words += ["--input", f"{ROOT}/tests/data/nf/phages.fasta", "-profile", "slurm,gpu"]
    search = f"{path}:{os.environ['PATH']}"
    run = nextflow(
        tmp_path, "-c", "often.config", "run", f"{ROOT}/main.nf", "-stub", *words, PATH=search
    )
    assert run.returncode == 0, run.stdout
    (embed,), (merge,) = commands(tmp_path, "EMBED"), commands(tmp_path, "MERGE")
    assert "#SBATCH -p fast\n" in embed
    assert "#SBATCH --gres=gpu:2 --account=lab --qos=long\n" in embed
    assert "#SBATCH -p normal\n" in merge
    assert "#SBATCH --account=lab --qos=long\n" in merge


# The settings of an executor that has no plugin here can be looked at all the same.
SETTINGS = """
workflow {
    def config = nextflow.Global.session.config
    println("SAID ${groovy.json.JsonOutput.toJson([config.aws, config.google, config.k8s])}")
}
"""


@effect_of("region", "project", "spot", "namespace", "storage_claim")
def test_cloud_is_asked_as_told(tmp_path: Path) -> None:
    (tmp_path / "settings.nf").write_text(SETTINGS)
    words = ["--region", "here", "--project", "mine", "--spot", "false", "--namespace", "ours"]
    words += ["--storage_claim", "disk", "-profile", "awsbatch,googlebatch,kubernetes"]
    config = str(ROOT / "nextflow.config")
    run = nextflow(
        tmp_path, "-c", config, "run", "settings.nf", *words, NXF_PLUGINS_DEFAULT="false"
    )
    (said,) = (line for line in run.stdout.splitlines() if line.startswith("SAID "))
    aws, google, k8s = json.loads(said[5:])
    assert (aws["region"], aws["batch"]["maxSpotAttempts"]) == ("here", 0)
    assert (google["location"], google["project"]) == ("here", "mine")
    assert google["batch"] == {"spot": False, "maxSpotAttempts": 0}
    assert (k8s["namespace"], k8s["storageClaimName"]) == ("ours", "disk")


def test_every_parameter_has_a_test_of_its_effect() -> None:
    groups = json.loads((ROOT / "nextflow_schema.json").read_text())["$defs"].values()
    assert {name for group in groups for name in group["properties"]} == PROVED
