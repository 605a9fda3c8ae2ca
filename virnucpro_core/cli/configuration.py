"""Where options come from: the command line, else --set, the environment, a file, the default.

A key is an option's name behind the group that it stands in: `embedding.precision`, `calls.preset`,
but `model`, `models_dir` and `threads`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import typer

from virnucpro_core.cli.options import CALLS, EMBEDDING, MODEL, RUNNING, SPLIT, TRANSLATE
from virnucpro_core.errors import InputError
from virnucpro_core.files import blamed
from virnucpro_core.inputs import missing

GROUPS = {
    MODEL: "",
    RUNNING: "",
    **{panel: f"{panel.lower()}." for panel in (SPLIT, TRANSLATE, EMBEDDING, CALLS)},
}
_EXCLUDES = {
    "preset": ("min_score", "max_fdr"),
    "min_score": ("preset",),
    "max_fdr": ("preset",),
    "window": ("model",),
}
"""Options of which one is given: what is nearer to the command puts out what is farther."""


class Setting(NamedTuple):
    """A value as text, and who set it: `run.yaml, line 3`, `$VIRNUCPRO_MODEL` or `--set`."""

    text: str
    source: str


def keys_of(command: Any) -> dict[str, Any]:
    """The options of a command that a configuration can set, by their keys."""
    return {
        GROUPS[option.rich_help_panel] + option.name: option
        for option in command.params
        if option.rich_help_panel in GROUPS
    }


def known_keys(context: typer.Context) -> dict[str, Any]:
    """The options of all commands that a configuration can set."""
    commands: dict[str, Any] = getattr(context.find_root().command, "commands", {})
    return {
        key: option
        for panel in GROUPS
        for command in commands.values()
        for key, option in keys_of(command).items()
        if option.rich_help_panel == panel
    }


def _option(key: str) -> str:
    return key.rpartition(".")[2]


def put_out(found: dict[str, Setting], options: Iterable[str]) -> dict[str, Setting]:
    """The settings, without those that exclude one of the options, which stand nearer."""
    out = {other for option in options for other in _EXCLUDES.get(option, ())}
    return {key: setting for key, setting in found.items() if _option(key) not in out}


def variable(key: str) -> str:
    """The environment's name of a key."""
    return f"VIRNUCPRO_{key.upper().replace('.', '_')}"


def _unknown(where: str, key: str, known: Iterable[str]) -> InputError:
    near = get_close_matches(key, known, 1)
    hint = f"did you mean {near[0]}?" if near else "`virnucpro config show` lists what there is."
    return InputError(f"{where}: {key} is no setting; {hint}")


def _of_file(path: Path, known: dict[str, Any]) -> Iterator[tuple[str, Setting]]:
    import yaml

    def entries(node: yaml.MappingNode, group: str) -> Iterator[tuple[str, Setting]]:
        for name, value in node.value:
            where = f"{path}, line {name.start_mark.line + 1}"
            if not isinstance(name, yaml.ScalarNode):
                raise InputError(
                    f"{where}: a list or map is no key; give embedding.precision: bf16"
                )
            key = f"{group}{name.value}"
            empty = value.tag.endswith(":null")
            if empty and f"{key}." in GROUPS.values():  # all of it is commented out
                continue
            if isinstance(value, yaml.ScalarNode):
                yield key, Setting("" if empty else value.value, where)
            elif isinstance(value, yaml.MappingNode) and not group and key not in known:
                yield from entries(value, f"{key}.")
            elif key in known:
                raise InputError(f"{where}: {key} takes one value; give it as {key}: VALUE.")
            else:
                raise _unknown(where, key, known)

    try:
        with blamed(path):
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise missing(path) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        why = getattr(error, "problem", None) or "it is no text"
        raise InputError(f"{path}{line}: is no YAML ({why}); mend it.") from None
    if isinstance(root, yaml.MappingNode):
        yield from entries(root, "")
    elif root is not None:
        raise InputError(f"{path}: holds no settings; give lines such as embedding.precision: bf16")


def _of_environment(known: dict[str, Any]) -> Iterator[tuple[str, Setting]]:
    names = {variable(key): key for key in known}
    groups = tuple(variable(group) for group in GROUPS.values() if group)
    for name, text in os.environ.items():
        if name in names and text:
            yield names[name], Setting(text, f"${name}")
        elif name not in names and name.startswith(groups):
            raise _unknown("environment", name, names)


def _of_options(given: Iterable[str]) -> Iterator[tuple[str, Setting]]:
    for one in given:
        key, equals, text = one.partition("=")
        if not equals or not key.strip():
            raise InputError(f"--set {one}: give KEY=VALUE, as in embedding.precision=bf16.")
        yield key.strip(), Setting(text.strip(), "--set")


def settings(context: typer.Context, file: Path | None, given: list[str]) -> dict[str, Setting]:
    """What file, environment and --set say, the nearer over the farther; an empty text is unset.

    Raises InputError for an unknown key, and for a value that its option does not take.
    """
    known = known_keys(context)
    found: dict[str, Setting] = {}
    for layer in (
        _of_file(file, known) if file is not None else (),
        _of_environment(known),
        _of_options(given),
    ):
        nearer: dict[str, Setting] = {}
        for key, setting in layer:
            if key not in known:
                raise _unknown(setting.source, key, known)
            if key in nearer and setting.source != "--set":
                raise InputError(f"{setting.source}: {key} is given twice; leave one out.")
            nearer[key] = setting
        found = put_out(found, map(_option, nearer)) | nearer
    found = {key: setting for key, setting in found.items() if setting.text}
    for key, (text, source) in found.items():
        try:
            known[key].process_value(context, text)
        except typer.BadParameter as error:
            why = error.message.removeprefix("Value error, ").rstrip(".")
            raise InputError(f"{source}: {key}: {text}: {why}.") from None
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    return found
