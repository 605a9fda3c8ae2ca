"""Published models, fetched from where they are published into the models folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from virnucpro_core.errors import InputError, ModelError
from virnucpro_core.files import blame_machine, blamed
from virnucpro_core.models.store import PUBLISHED_WINDOWS, Model, read_model, sha256
from virnucpro_core.published.checkpoints import read_weight_map
from virnucpro_core.published.formats import WEIGHT_FILES, load_classifier
from virnucpro_core.published.imports import import_model, root_folder
from virnucpro_core.reading import read_object

logger = logging.getLogger("virnucpro.models")

DNABERT_S = "zhihan1996/DNABERT-S"
ESM2 = "facebook/esm2_t36_3B_UR50D"
ORIGINAL = "https://github.com/Li-Jing-1997/VirNucPro"


def _at_hand(others: Sequence[Path], part: str, source: str) -> Path | None:
    """The folder of an encoder of that source in the first of some models that has it whole."""
    for path in others:
        with suppress(ModelError, FileNotFoundError, PermissionError):  # then it lends nothing
            of = read_object(path).get("source")
            if isinstance(of, dict) and of.get(part) == source:
                model = read_model(path.parent)
                files = {model.path(f): sha for f, sha in model.weights.items() if part in f}
                if all(sha256(file) == sha for file, sha in files.items()):
                    return model.path(part)
    return None


def _link_encoder(
    folder: Path, repo: str, revision: str, files: list[str], others: Sequence[Path]
) -> str:
    """Make a folder of links to the named files and the weights; return their commit.

    others: model.json of models; where one has them already, the folder is a link to that encoder.
    """
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30)
    published = {sibling.rfilename: sibling for sibling in info.siblings or []}
    if lender := _at_hand(others, folder.name, f"{repo}@{info.sha}"):
        logger.info("%s, commit %s, is in %s already", repo, info.sha, lender)
        folder.symlink_to(lender.resolve())
        return str(info.sha)
    logger.info("fetching %s, commit %s", repo, info.sha)
    folder.mkdir()

    def link(name: str) -> Path:
        path = Path(hf_hub_download(repo, name, revision=info.sha))
        large = published[name].lfs if name in published else None
        if large is not None and sha256(path) != large.sha256:
            raise ModelError(f"{path.resolve()}: is damaged; delete it and run the command again.")
        (folder / name).symlink_to(path)
        return path

    weights = next((name for name in WEIGHT_FILES if name in published), None)
    if weights is None:
        raise ModelError(f"{repo}, commit {info.sha}: has no weights; name another revision.")
    for name in (*files, weights):
        path = link(name)
    if weights.endswith(".index.json"):
        for shard in sorted(set(read_weight_map(path).values())):
            link(shard)
    return str(info.sha)


def _why(error: Exception) -> str:
    match error:
        case GatedRepoError():
            return "is gated (accept its terms there and set HF_TOKEN)"
        case RepositoryNotFoundError() | RevisionNotFoundError() | RemoteEntryNotFoundError():
            return "there is no such repository, revision or file"
    cause = error.__cause__ or error
    return f"cannot be fetched ({type(cause).__name__}: {str(cause).partition(chr(10))[0]})"


def _local_classifier(source: str, folder: Path) -> Path:
    if not source.startswith(("http://", "https://")):
        return Path(source)
    try:
        path = folder / (Path(urlsplit(source).path).name or "classifier.pth")
        answer = httpx2.get(source, follow_redirects=True, timeout=60).raise_for_status()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise ModelError(
            f"{source}: {_why(error)}; get it by other means and give --classifier its path."
        ) from None
    with blamed(path):
        path.write_bytes(answer.content)
    return path


def fetch_model(
    name: str,
    *,
    classifier: str | None,
    models_dir: Path | None = None,
    dnabert_s_revision: str = "main",
    esm2_revision: str = "main",
) -> Model:
    """Fetch a published model's parts, check them, and import them into the models folder.

    classifier: the original's `.pth`, a path or an http(s) URL. The encoders come from the Hugging
    Face hub ($HF_ENDPOINT) by way of its cache ($HF_HOME), where what is whole stays for the next
    run, unless another model here has that encoder, of the same commit. A revision is a branch, a
    tag or a commit. Raises InputError for an unknown name or when the classifier or the models
    folder is not given, ModelError when a part cannot be fetched or does not load.
    """
    if name not in PUBLISHED_WINDOWS:
        raise InputError(
            f"model {name!r} is not published; choose one of {', '.join(PUBLISHED_WINDOWS)}."
        )
    root = root_folder(models_dir)
    if classifier is None:
        raise InputError(
            f"the classifier of {name} is not on the hub: get {PUBLISHED_WINDOWS[name]}_model.pth "
            f"from {ORIGINAL} and give its path or URL with --classifier; the rest is fetched then."
        )
    encoders = {
        "dnabert_s": (DNABERT_S, dnabert_s_revision, ["config.json", "tokenizer.json"]),
        "esm2": (ESM2, esm2_revision, ["config.json"]),
    }
    others = [path for path in sorted(root.glob("*/model.json")) if path.parent.name != name]
    with TemporaryDirectory() as temporary:
        staged = Path(temporary)
        head = _local_classifier(classifier, staged)
        load_classifier(head)  # before gigabytes are fetched for it
        source = {}
        for part, (repo, revision, files) in encoders.items():
            try:
                commit = _link_encoder(staged / part, repo, revision, files, others)
            except (httpx2.HTTPError, OSError, RuntimeError, ValueError, LookupError) as error:
                if not isinstance(error, httpx2.HTTPError):  # those are the network's
                    blame_machine(error, Path(getattr(error, "filename", None) or HF_HOME))
                raise ModelError(
                    f"{HfApi().endpoint}/{repo}, revision {revision}: {_why(error)}; run the "
                    "command again, name another hub in HF_ENDPOINT, or get the files elsewhere "
                    f"and bring them in with `virnucpro models import {name}`."
                ) from None
            source[part] = f"{repo}@{commit}"
        return import_model(
            name,
            dnabert_s=staged / "dnabert_s",
            esm2=staged / "esm2",
            classifier=head,
            models_dir=root,
            source=source,
            shared=True,
        )
