"""What the file names is there: base model, data files, DeepSpeed file, plugins, data-set types, chat templates."""

import glob
import json
import os
import re
from collections.abc import Iterator
from typing import Any

from lora_recipes import ROOT
from lora_recipes.check import strategies
from lora_recipes.check.subject import Subject
from lora_recipes.config import keys, values

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")
_DATA = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".zst", ".gz")
_LOADERS = ("json", "csv", "parquet", "arrow", "text")
_SETS = ("datasets", "test_datasets", "pretraining_dataset")


def check(subject: Subject) -> None:
    """Local paths that lead nowhere, a broken DeepSpeed file, plugins and types that do not exist."""
    _base_model(subject)
    for key, entry in _entries(subject):
        _data_files(subject, key, entry)
    _deepspeed_file(subject)
    _plugins(subject)
    if strategies.package() is None:
        subject.report.skip("data-set types and chat template", "Axolotl is not installed here")
        return
    for key, entry in _entries(subject):
        _dataset_type(subject, key, entry)
        _chat_template(subject, f"{key}.", entry)
    _chat_template(subject, "", subject.config)


def _entries(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in _SETS:
        value = subject.config.get(name)
        for index, entry in enumerate(value if isinstance(value, list) else []):
            if isinstance(entry, dict):
                yield f"{name}.{index}", entry


def _there(subject: Subject, value: str) -> bool:
    return os.path.exists(subject.given.path(value))  # False, not OSError, for a name that no path can have


def _base_model(subject: Subject) -> None:
    value = subject.config.get("base_model")
    if not isinstance(value, str) or not value or "://" in value or _there(subject, value):
        return
    if not _HUB_NAME.fullmatch(value):
        subject.error(
            "base-model",
            "base_model",
            _absent(subject, value),
            "a folder that exists, or a name on the Hub as owner/name",
            "correct the path, or download the model to it first",
        )


def _absent(subject: Subject, value: str) -> str:
    if value.startswith("~"):
        return f"{value}: neither Axolotl nor transformers reads ~ as the home folder"
    return f"there is no {value} in {subject.given.anchor}" if value[:1] != "/" else f"there is no {value}"


def _data_files(subject: Subject, key: str, entry: dict[str, Any]) -> None:
    path, listed = entry.get("path"), entry.get("data_files")
    if not isinstance(path, str) or not path or "://" in path:
        return
    if not _there(subject, path) and path not in _LOADERS and _meant_local(subject, path):
        subject.error(
            "data-files",
            f"{key}.path",
            _absent(subject, path),
            "a file or a folder that exists, or a name on the Hub as owner/name",
            "correct the path, or fetch the data first",
        )
        return
    if not _there(subject, path) and path not in _LOADERS:
        return  # on the Hub: its files are there
    for file in [listed] if isinstance(listed, str) else listed if isinstance(listed, list) else []:
        if isinstance(file, str) and "://" not in file and not _matches(subject, path, file):
            subject.error(
                "data-files",
                f"{key}.data_files",
                _absent(subject, file),
                "files that exist",
                "correct the path; it counts from the working directory",
            )


def _meant_local(subject: Subject, path: str) -> bool:
    if path.startswith((".", "/", "~")) or path.lower().endswith(_DATA) or path.count("/") > 1:
        return True
    return "/" in path and os.path.isdir(subject.given.path(path.partition("/")[0]))


def _matches(subject: Subject, folder: str, file: str) -> bool:
    anchor = subject.given.anchor
    try:
        return any(glob.glob(str(base / file), recursive=True) for base in (anchor, anchor / folder))
    except (OSError, ValueError, re.error):
        return False


def deepspeed_config(subject: Subject) -> dict[str, Any] | None:
    """The DeepSpeed settings, inline or of the file; None where there are none that can be read."""
    value = subject.config.get("deepspeed")
    if isinstance(value, str) and value:
        try:
            value = json.loads(subject.given.path(value).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    return value if isinstance(value, dict) else None


def _deepspeed_file(subject: Subject) -> None:
    value = subject.config.get("deepspeed")
    if not isinstance(value, str) or not value:
        return
    expected = "a JSON file with DeepSpeed's settings"
    path = subject.given.path(value)
    if not os.path.isfile(path):
        folders = dict.fromkeys((subject.given.anchor / "deepspeed_configs", ROOT / "deepspeed_configs"))
        files = [f"deepspeed_configs/{file.name}" for folder in folders for file in sorted(folder.glob("*.json"))]
        stage = re.search(r"zero\d", value)  # another stage is another run, however like the name
        alike = [file for file in files if stage is None or stage.group() in file]
        near = keys.nearest(value, alike).removeprefix(", ")
        fix = near or f"take one of {', '.join(dict.fromkeys(files))}, or `axolotl fetch deepspeed_configs`"
        return subject.error("deepspeed-file", "deepspeed", _absent(subject, value), expected, fix)
    try:
        if not isinstance(json.loads(path.read_text(encoding="utf-8")), dict):
            subject.error("deepspeed-file", "deepspeed", f"{value} holds no mapping", expected, "write it as { … }")
    except json.JSONDecodeError as error:
        found = f"{value}, line {error.lineno}, column {error.colno}: {error.msg}"
        subject.error("deepspeed-file", "deepspeed", found, expected, "mend the JSON there")
    except (OSError, ValueError) as error:
        found = f"{value} cannot be read ({type(error).__name__})"
        subject.error("deepspeed-file", "deepspeed", found, expected, "save it as UTF-8 text that you may read")
    return None


def _plugins(subject: Subject) -> None:
    """Axolotl logs a plugin that it cannot import and trains without it."""
    names = subject.config.get("plugins")
    for index, name in enumerate(names if isinstance(names, list) else []):
        if not isinstance(name, str):
            continue
        module = name.rpartition(".")[0]
        if module.startswith("axolotl.") and strategies.package() is None:
            subject.report.skip("plugins", "Axolotl is not installed here")
        elif not values.plugin_is_there(name, subject.given.anchor):
            near = keys.nearest(name, _known_plugins())
            subject.error(
                "plugin",
                f"plugins.{index}",
                f"{name} cannot be imported here: Axolotl logs that and trains without it",
                "package.module.Class of an installed package",
                near.removeprefix(", ") or "install its package, or delete the line",
            )


def _known_plugins() -> list[str]:
    ours = [f"lora_recipes.plugin.{name}" for name in ("CpuPlugin", "PlainTrainerPlugin", "RunPlugin")]
    return [*keys.table()["plugins"], *ours]


def _dataset_type(subject: Subject, key: str, entry: dict[str, Any]) -> None:
    kind, rl = entry.get("type"), subject.config.get("rl")
    if not isinstance(kind, str) or not kind or subject.config.get("skip_prepare_dataset") is True:
        return None
    if strategies.known(kind, rl, subject.given.anchor):
        return None
    if rl in ("grpo", "gdpo") and "." in kind:
        module = kind.rpartition(".")[0]
        return subject.report.skip("data-set type", f"{kind}: the module {module}, yours to write, is not here")
    dotted = kind.replace(":load_", ".load_")
    near = keys.nearest(dotted, strategies.names(rl if isinstance(rl, str) else None))
    subject.error(
        "dataset-type",
        f"{key}.type",
        f"Axolotl has no type {kind!r}{f' for rl: {rl}' if rl else ''}",
        "a type of Axolotl, an importable module, or a mapping with field_instruction and field_output",
        near.removeprefix(", ") or "write chat_template for rows of messages, or a mapping for rows of columns",
    )
    return None


def _chat_template(subject: Subject, prefix: str, holder: dict[str, Any]) -> None:
    value, jinja = holder.get("chat_template"), holder.get("chat_template_jinja")
    known = strategies.chat_templates()
    if value == "jinja" and not jinja:
        subject.error(
            "chat-template",
            f"{prefix}chat_template",
            "jinja without chat_template_jinja",
            "the template, or the path of a file that holds it",
            "add chat_template_jinja, or write tokenizer_default",
        )
    elif isinstance(value, str) and value and value.removeprefix("tokenizer_default_fallback_") not in known:
        is_template = "{" in value or value.endswith((".jinja", ".j2"))
        near = keys.nearest(value, known).removeprefix(", ")
        subject.error(
            "chat-template",
            f"{prefix}chat_template",
            f"Axolotl has no template {value[:60]!r}",
            "a template of Axolotl, tokenizer_default, or jinja",
            "write chat_template: jinja, and this under chat_template_jinja"
            if is_template
            else near or "write tokenizer_default for the model's own template",
        )
    if isinstance(jinja, str) and jinja and "{" not in jinja and not _there(subject, jinja):
        subject.error(
            "chat-template",
            f"{prefix}chat_template_jinja",
            f"{jinja[:60]!r} is no file and has no placeholder: each row would become this text",
            "a Jinja template, or the path of a file that holds one",
            "correct the path",
        )
