"""The run file: plain Axolotl YAML, the one thing that passes between the tools."""

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import keys, scrubbing, yamlfile
from lora_recipes.support import files

import click
import yaml

KEPT = "run.yaml"
"""The name of the run file as trained, beside the outputs."""

NEEDED = ("base_model", "datasets", "output_dir")
"""The keys without which there is nothing to do, or no place for what is done."""


@dataclass(frozen=True)
class RunFile:
    """A run file as read, with the folder from which its relative paths count."""

    document: yamlfile.Document
    text: str
    anchor: Path

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def config(self) -> dict[str, Any]:
        return self.document.data

    @property
    def output_dir(self) -> Path:
        return self.anchor / self.config["output_dir"]

    @property
    def sha256(self) -> str:
        """Of the meaning of the file: comments and layout do not count."""
        plain = yaml.safe_dump(self.config, sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def recipe(self) -> str:
        """The last folder but one of output_dir: the recipe in results, tables and plots."""
        return self.output_dir.parent.name

    @property
    def variant(self) -> str:
        """The last folder of output_dir: the name of this run among its recipe's."""
        return self.output_dir.name

    def error(self, key: str, message: str) -> click.ClickException:
        path = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        return self.document.error(path, message)

    def path(self, value: str) -> Path:
        return self.anchor / value

    def model(self, key: str = "base_model") -> str:
        """The base model: a local folder made absolute, or a name on the Hub as it is."""
        value = self.config[key]
        local = self.path(value)
        return str(local) if local.exists() or value.startswith(".") else value

    def keep(self, plugins: Sequence[str] = ()) -> Path:
        """Write the file beside its outputs, with paths that hold in any working directory, and plugins added.

        Raises click.ClickException when the folder holds what another run file trained: Axolotl would resume
        from its checkpoints and train something that neither file describes, or write over its adapter.
        """
        config = absolute(self.config, self.anchor)
        if plugins:
            config["plugins"] = [*(config.get("plugins") or []), *plugins]
        folder = Path(config["output_dir"])
        files.require_writable(folder)
        path = folder / KEPT
        trained = [*folder.glob("checkpoint-*"), *folder.glob("adapter_model.*")]
        if path.exists() and trained and yaml.safe_load(files.read_text(path)) != config:
            raise self.error(
                "output_dir",
                f"{folder} holds {trained[0].name} of another run file; train with --overwrite to replace it, or "
                "--set output_dir to a new folder.",
            )
        header = [line for line in self.text.splitlines() if line.startswith("#")][:8]
        body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10**9)
        files.write_text(path, "\n".join([*header, "", body]) if header else body)
        return path


def load(source: str | Path) -> RunFile:
    """Read and check a run file; `-` is stdin.

    Raises click.ClickException, naming file, line and key, for YAML that is no run file: invalid,
    empty, a duplicate key, an unknown key, a number written as text, no base_model or output_dir, a secret.
    """
    name, text = source_text(source)
    _require_no_secret(name, text)
    document = yamlfile.load(text, name)
    for problem in key_problems(document, (), document.data, keys.schema()):
        raise problem.error(name)
    for key in NEEDED:
        if not document.data.get(key):
            raise click.ClickException(f"{name}: {key}: missing; a run file needs it, see recipes/ for examples.")
    return RunFile(document, text, anchor_of(document.data))


def _require_no_secret(name: str, text: str) -> None:
    """A run file is kept beside the outputs, noted in results, and printed in Axolotl's model card."""
    for number, line in enumerate(text.splitlines(), 1):
        for kind, _ in scrubbing.secrets_in(line):
            raise click.ClickException(
                f"{name}, line {number}: {kind} stands here, and a run file ends up in results and model cards; take "
                "it out, and log in (`hf auth login`, `wandb login`) or set it in the environment."
            )


def source_text(source: str | Path) -> tuple[str, str]:
    """The name and the text of a run file; `-` is stdin."""
    if source == "-":
        if sys.stdin.isatty():
            raise click.UsageError("- reads a run file from stdin; pipe one in, as in `tools/render.py | … -`.")
        name, text = "stdin", _decoded(sys.stdin.buffer.read())
    else:
        path = Path(source)
        if not path.is_file():
            raise click.UsageError(f"no run file {source}; recipes/ holds the rendered ones.")
        name, text = str(source), files.read_text(path)
    return name, text


def load_several(sources: tuple[str, ...], adapter: Path | None = None) -> list[RunFile]:
    """The run files of one call, each with an output folder of its own that is not the base model's.

    Raises as `load` does, and click.UsageError for a run given twice or one adapter for several.
    """
    runs = [load(source) for source in sources]
    if len({run.output_dir.resolve() for run in runs}) < len(runs):
        raise click.UsageError("two run files have the same output_dir; give each run once.")
    if adapter and len(runs) > 1:
        raise click.UsageError("--adapter belongs to one run file; give one.")
    for run in runs:
        if run.variant == "base":
            raise run.error("output_dir", "its last folder names the variant, and `base` is the base model's; rename.")
    return runs


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"stdin: byte {error.start} is not UTF-8; a run file is UTF-8 text.") from None


def key_problems(document: yamlfile.Document, path: yamlfile.Path, node: Any, known: Any) -> Iterator[yamlfile.Problem]:
    """Keys and types that Axolotl's schema has not: it drops unknown keys in silence."""
    if isinstance(node, list) and isinstance(known, dict):
        for index, item in enumerate(node):
            here = (*path, index)
            if isinstance(item, dict):
                yield from key_problems(document, here, item, known)
            else:
                found = f"expected a mapping, found {scrubbing.scrubbed(repr(item))}"
                fix = f"write it as a mapping, with {', '.join([key for key in ('path', 'type') if key in known])}"
                yield yamlfile.Problem("wrong-type", here, document.line(here), found, fix.removesuffix(", with "))
        return
    if not (isinstance(node, dict) and isinstance(known, dict)):
        types = known.get("", "dict|list") if isinstance(known, dict) else known
        if path and not _fits(node, types.split("|")):
            wanted = " or ".join(t for t in types.split("|") if t != "null") or "mapping"
            found = f"expected {wanted}, found {scrubbing.scrubbed(repr(node))}"
            yield yamlfile.Problem("wrong-type", path, document.line(path), found, _retyping(node, wanted))
        return
    for key, value in node.items():
        here = (*path, str(key))
        if key not in known or key == "":
            near = keys.nearest(str(key), [k for k in known if k])
            fix = near.removeprefix(", ") or "delete it"
            found = "Axolotl has no such key and would ignore it"
            yield yamlfile.Problem("unknown-key", here, document.line(here), found, fix)
        else:
            yield from key_problems(document, here, value, known[key])


def _fits(value: Any, types: list[str]) -> bool:
    kind = "null" if value is None else type(value).__name__
    return kind == "null" or "any" in types or kind in types or (kind == "int" and "float" in types)


def _retyping(value: Any, wanted: str) -> str:
    if isinstance(value, bool) and "str" in wanted:
        return "YAML reads yes, no, on and off as true and false: quote the word"
    if isinstance(value, str) and ("int" in wanted or "float" in wanted):
        return "write a number without quotes"
    return f"write {'a' if wanted[0] not in 'aeio' else 'an'} {wanted}"


def _local_inputs(config: dict[str, Any]) -> list[str]:
    """The relative paths that a run file may read: only those that look like, or are, local ones."""
    inputs = [config.get("base_model"), config.get("deepspeed")]
    for key in ("datasets", "test_datasets"):
        entries = config.get(key) if isinstance(config.get(key), list) else []
        inputs += [entry.get("path") for entry in entries or [] if isinstance(entry, dict)]
    return [value for value in inputs if isinstance(value, str) and not Path(value).is_absolute()]


def anchor_of(config: dict[str, Any]) -> Path:
    """Where relative paths count from: the working directory, as for Axolotl itself, unless files
    that the run file names are only in this checkout (`cd elsewhere && … | axolotl train -`)."""
    here = Path.cwd()
    inputs = _local_inputs(config)
    inside = [value for value in inputs if ".." not in Path(value).parts]  # what lies beside the checkout is not ours
    elsewhere = [value for value in inside if not os.path.exists(value) and os.path.exists(ROOT / value)]
    return ROOT if elsewhere else here


def absolute(config: dict[str, Any], anchor: Path) -> dict[str, Any]:
    """A copy of the configuration in which every local path is absolute."""
    config = yaml.safe_load(yaml.safe_dump(config))  # a deep copy without shared anchors

    def local(value: Any) -> Any:
        return str(anchor / value) if isinstance(value, str) and (anchor / value).exists() else value

    config["base_model"] = local(config["base_model"])
    if "deepspeed" in config:
        config["deepspeed"] = local(config["deepspeed"])
    for key in ("datasets", "test_datasets"):
        for entry in config.get(key) or []:
            entry["path"] = local(entry["path"])
    for key in ("output_dir", "dataset_prepared_path"):
        if config.get(key):
            config[key] = str(anchor / config[key])
    return config
