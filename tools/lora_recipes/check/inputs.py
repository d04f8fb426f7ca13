"""What the file names is there: base model, data files, DeepSpeed file, plugins, chat templates."""

import glob
import importlib.util
import os
import re
from typing import Any

from lora_recipes import ROOT
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import inputs, keys, values
from lora_recipes.data import builders

import click

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")
_DATA = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".zst", ".gz")
_FALLBACK = "tokenizer_default_fallback_"


def check(checked: CheckedRun) -> None:
    """Local paths that lead nowhere, a broken DeepSpeed file, plugins and templates that do not exist."""
    _output_dir(checked)
    _base_model(checked)
    _deepspeed_file(checked)
    _plugins(checked)
    _chat_template(checked, "", checked.config)
    for key, entry in builders.entries(checked.config):
        _reader(checked, key, entry)
        _data_files(checked, key, entry)
        _chat_template(checked, f"{key}.", entry)


def _there(checked: CheckedRun, value: str) -> bool:
    return os.path.exists(checked.given.path(value))  # False, not OSError, for a name that no path can have


def _output_dir(checked: CheckedRun) -> None:
    """An output folder in which the run's own inputs lie."""
    named = checked.config.get("output_dir")
    if not isinstance(named, str) or not named:
        return
    config = {**checked.config, **{key: checked.entries(key) for key in inputs.DATA}}
    if held := inputs.in_the_way(config, checked.given.anchor):
        checked.error(
            "output-dir",
            "output_dir",
            f"{held[0]} reads {held[1]} there, which training would write into",
            "a folder of its own for what is trained",
            "name another folder",
        )


def _base_model(checked: CheckedRun) -> None:
    value = checked.config.get("base_model")
    if not isinstance(value, str) or not value or "://" in value or _there(checked, value):
        return
    if not _HUB_NAME.fullmatch(value):
        checked.error(
            "base-model",
            "base_model",
            _absent(checked, value),
            "a folder that exists, or a name on the Hub as owner/name",
            "correct the path, or download the model to it first",
        )


def _absent(checked: CheckedRun, value: str) -> str:
    if value.startswith("~"):
        return f"{value}: neither Axolotl nor transformers reads ~ as the home folder"
    return f"there is no {value} in {checked.given.anchor}" if value[:1] != "/" else f"there is no {value}"


def _reader(checked: CheckedRun, key: str, entry: dict[str, Any]) -> None:
    """A reader that may run what it reads, and names that Axolotl takes for patterns."""
    if found := builders.refused(entry.get("path"), entry.get("ds_type")):
        checked.error(
            "reader",
            f"{key}.{found[0]}",
            builders.sentence(*found).partition(";")[0],
            f"one of {', '.join(builders.KNOWN)}",
            "save the rows as JSON lines or Parquet, and name that file",
        )
    for name, words in builders.taken_for_patterns(entry, checked.given.anchor):
        checked.error("data-files", f"{key}.{name}", words, "a literal name", "rename the file or its folder")


def _data_files(checked: CheckedRun, key: str, entry: dict[str, Any]) -> None:
    path, listed = entry.get("path"), entry.get("data_files")
    if not isinstance(path, str) or not path or "://" in path:
        return
    if not _there(checked, path) and path not in builders.KNOWN and _meant_local(checked, path):
        checked.error(
            "data-files",
            f"{key}.path",
            _absent(checked, path),
            "a file or a folder that exists, or a name on the Hub as owner/name",
            "correct the path, or fetch the data first",
        )
        return
    if not _there(checked, path) and path not in builders.KNOWN:
        return  # on the Hub: its files are there
    for file in [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []:
        if isinstance(file, str) and "://" not in file and not _matches(checked, file):
            checked.error(
                "data-files",
                f"{key}.data_files",
                _absent(checked, file),
                "files that exist",
                "correct the path; it counts from the working directory",
            )


def _meant_local(checked: CheckedRun, path: str) -> bool:
    if path.startswith((".", "/", "~")) or path.lower().endswith(_DATA) or path.count("/") > 1:
        return True
    return "/" in path and os.path.isdir(checked.given.path(path.partition("/")[0]))


def _matches(checked: CheckedRun, file: str) -> bool:
    path = str(checked.given.path(file))
    try:
        return os.path.exists(path) or bool(glob.glob(path, recursive=True))
    except (OSError, ValueError, re.error):
        return False


def deepspeed_config(checked: CheckedRun) -> dict[str, Any] | None:
    """The DeepSpeed settings, inline or of the file; None where there are none that can be read."""
    try:
        found = values.deepspeed_settings(checked.config.get("deepspeed"), checked.given.anchor)
    except click.ClickException:
        return None
    return found if found and isinstance(found, dict) else None


def _deepspeed_file(checked: CheckedRun) -> None:
    value = checked.config.get("deepspeed")
    expected = "a JSON file with DeepSpeed's settings"
    if isinstance(value, str) and value and not os.path.isfile(checked.given.path(value)):
        folders = dict.fromkeys((checked.given.anchor / "deepspeed_configs", ROOT / "deepspeed_configs"))
        files = [f"deepspeed_configs/{file.name}" for folder in folders for file in sorted(folder.glob("*.json"))]
        stage = re.search(r"zero\d", value)  # another stage is another run, however like the name
        alike = [file for file in files if stage is None or stage.group() in file]
        near = keys.nearest(value, alike).removeprefix(", ")
        fix = near or f"take one of {', '.join(dict.fromkeys(files))}, or `axolotl fetch deepspeed_configs`"
        return checked.error("deepspeed-file", "deepspeed", _absent(checked, value), expected, fix)
    try:
        if isinstance(value, (str, dict)):
            values.deepspeed_settings(value, checked.given.anchor)
    except click.ClickException as error:
        checked.error("deepspeed-file", "deepspeed", error.message, expected, "correct it there")
    return None


def _plugins(checked: CheckedRun) -> None:
    """Axolotl logs a plugin that it cannot import and trains without it."""
    names = checked.config.get("plugins")
    for index, name in enumerate(names if isinstance(names, list) else []):
        if not isinstance(name, str):
            continue
        module = name.rpartition(".")[0]
        if module.startswith("axolotl.") and importlib.util.find_spec("axolotl") is None:
            checked.report.skip("plugins", "Axolotl is not installed here")
        elif not values.plugin_is_there(name, checked.given.anchor):
            near = keys.nearest(name, _known_plugins())
            checked.error(
                "plugin",
                f"plugins.{index}",
                f"{name} cannot be imported here: Axolotl logs that and trains without it",
                "package.module.Class of an installed package",
                near.removeprefix(", ") or "install its package, or delete the line",
            )


def _known_plugins() -> list[str]:
    ours = [f"lora_recipes.plugin.{name}" for name in ("CpuPlugin", "PlainTrainerPlugin", "RunPlugin")]
    return [*keys.table()["plugins"], *ours]


def types(checked: CheckedRun) -> list[tuple[str, str]]:
    """The data-set types that are named by a word, with their keys; Axolotl knows which of them it has."""
    if checked.config.get("skip_prepare_dataset") is True:
        return []
    named = [(f"{key}.type", entry.get("type")) for key, entry in builders.entries(checked.config)]
    return [(key, kind) for key, kind in named if isinstance(kind, str) and kind]


def _chat_template(checked: CheckedRun, prefix: str, holder: dict[str, Any]) -> None:
    """Templates that do not exist and that Axolotl's validation lets pass."""
    value, jinja = holder.get("chat_template"), holder.get("chat_template_jinja")
    name = value.removeprefix(_FALLBACK) if isinstance(value, str) else ""
    if name and (prefix or name != value) and importlib.util.find_spec("axolotl"):
        from axolotl.utils.chat_templates import _CHAT_TEMPLATES

        known = [*_CHAT_TEMPLATES, "tokenizer_default", "jinja"]
        if name not in known:
            checked.error(
                "chat-template",
                f"{prefix}chat_template",
                f"Axolotl has no template {name[:60]!r}",
                "a template of Axolotl, tokenizer_default, or jinja",
                keys.nearest(name, known).removeprefix(", ") or "write tokenizer_default for the model's own template",
            )
    if isinstance(jinja, str) and jinja and "{" not in jinja and not _there(checked, jinja):
        checked.error(
            "chat-template",
            f"{prefix}chat_template_jinja",
            f"{jinja[:60]!r} is no file and has no placeholder: each row would become this text",
            "a Jinja template, or the path of a file that holds one",
            "correct the path",
        )
