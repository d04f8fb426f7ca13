"""What is checked: a run file that may be wrong in any way, and its tokenizer, configuration and rows."""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from lora_recipes.check.findings import Finding, Report
from lora_recipes.config import runfile, values, yamlfile
from lora_recipes.support import libraries

import click


class CheckedRun:
    """One run file under check. What cannot be loaded is None, and said once in the report."""

    def __init__(self, source: str | Path, model_dir: Path | None = None, processes: int = 1) -> None:
        """`processes` is the number that the run will have, one for each GPU.

        Raises click.ClickException when the file cannot be read as a YAML mapping at all.
        """
        self.processes = processes
        name, text = runfile.source_text(source)
        document = yamlfile.read(text, name)
        self.report = Report(name)
        self.given = runfile.RunFile(document, text, values.anchor_of(document.data))
        """As written."""
        self.run = self.given
        """With `--model-dir` in place of the base model."""
        if model_dir:
            self.run = self.given.replaced(base_model=str(model_dir.resolve()))

    @property
    def config(self) -> dict[str, Any]:
        return self.given.config

    def line(self, key: str) -> int | None:
        """The line of a dotted key; None when neither it nor one above it is in the file."""
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        lines = self.given.document.lines
        return next((lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in lines), None)

    def find(self, severity: str, check: str, key: str, found: str, expected: str, fix: str) -> None:
        """Add a finding with the line of its key."""
        self.report.findings.append(Finding(severity, check, key, self.line(key), found, expected, fix))

    def error(self, check: str, key: str, found: str, expected: str, fix: str) -> None:
        self.find("error", check, key, found, expected, fix)

    def warning(self, check: str, key: str, found: str, expected: str, fix: str) -> None:
        self.find("warning", check, key, found, expected, fix)

    def note(self, check: str, key: str, found: str, expected: str, fix: str) -> None:
        self.find("note", check, key, found, expected, fix)

    def number(self, key: str, default: float = 0) -> float:
        """A number of the run file; the default where it is absent or no number."""
        value = self.config.get(key)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else default

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The data sets under a key that are mappings with a path."""
        value = self.config.get(key)
        found = value if isinstance(value, list) else []
        return [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("path"), str)]

    def local(self, value: Any) -> Path | None:
        """The file or folder that a value names, when it is on this machine."""
        if not isinstance(value, str) or not value or "://" in value:
            return None
        path = self.given.path(value)
        return path if os.path.exists(path) else None  # False, too, for a name that is no path at all

    @functools.cached_property
    def model_config(self) -> Any:
        """transformers' configuration of the base model, without running code from its repository."""
        name = self.run.config.get("base_model")
        if not isinstance(name, str) or not name:
            return None
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.run.model(), trust_remote_code=False)
        except Exception as error:  # of a dozen types: absent, gated, offline, malformed, of an unknown kind
            words = f"the configuration of {name} cannot be loaded ({libraries.reason(error)})"
            if self.local(name) and self.run is self.given and not self.config.get("trust_remote_code"):
                fix = "complete the folder: config.json, the tokenizer's files and the weights"
                self.error("base-model", "base_model", words, "a model that transformers can load", fix)
            else:
                self.report.skip("base model", f"{words}; --model-dir takes a folder with it")
            return None

    @functools.cached_property
    def meta_model(self) -> Any:
        """The base model without weights, on torch's meta device."""
        if self.model_config is None:
            return None
        try:
            from lora_recipes.models import loading

            return loading.without_weights(self.model_config)
        except Exception as error:  # a model kind without a causal form, or one that needs code of its repository
            words = f"the model cannot be built here ({libraries.reason(error)})"
            self.report.skip("target modules and attention", words)
            return None

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The tokenizer with the run file's special tokens and chat template."""
        if self.model_config is None:
            return None
        from lora_recipes.models import loading

        try:
            return loading.load_tokenizer(_with_template_spelled_out(self.run))
        except click.ClickException as error:
            self.report.skip("tokenizer", error.message)
        except Exception as error:
            self.report.skip("tokenizer", f"it cannot be loaded ({libraries.reason(error)})")
        return None


def _with_template_spelled_out(run: runfile.RunFile) -> runfile.RunFile:
    """A run that names one of Axolotl's own templates, with its text in place of the name."""
    name = run.config.get("chat_template")
    if not isinstance(name, str) or importlib.util.find_spec("axolotl") is None:
        return run
    from axolotl.utils.chat_templates import get_chat_template

    try:
        text = get_chat_template(name)
    except ValueError:  # none of Axolotl's own
        return run
    return run.replaced(chat_template="jinja", chat_template_jinja=text)
