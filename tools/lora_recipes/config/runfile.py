"""The run file: plain Axolotl YAML, which every tool reads."""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_recipes.config import inputs, keys, limits, scrubbing, values, yamlfile, yamlloader
from lora_recipes.config.typed import Typed
from lora_recipes.support import filenames, files, terminal

import click
import yaml

KEPT = "run.yaml"
"""The name of the run file as trained, beside the outputs."""

BASE_NAME = re.compile(r"base(-[0-9a-f]{8})?")
"""Folders beside a run's outputs that hold what was measured of base models: a second has digits of its identity."""

INPUTS = "inputs.json"
"""Beside it: what the local files that it names held, by key."""

PREPARED = "dataset_prepared_path"

DEFAULT_PREPARED = "last_run_prepared"
"""Where Axolotl 0.19 prepares rows without a dataset_prepared_path (common/const.py)."""

TRAINED = ("checkpoint-*", "adapter_model.*")
"""What a trainer leaves in its output folder."""

_SOMEBODYS = (*TRAINED, "model*.safetensors", "pytorch_model*.bin", "config.json")
"""What makes a folder without a kept run file somebody's work."""

NEEDED = ("base_model", "datasets", "output_dir")
"""The keys that every run file has to have."""


@dataclass(frozen=True)
class RunFile(Typed):
    """A run file, and what is done with it as a file."""

    @property
    def name(self) -> str:
        return self.document.name

    @property
    def output_dir(self) -> Path:
        return Path(os.path.normpath(self.anchor / self.config["output_dir"]))  # whose last folders are names

    def replaced(self, **changed: Any) -> "RunFile":
        """The run file with other values of some keys."""
        document = dataclasses.replace(self.document, data={**self.config, **changed})
        return dataclasses.replace(self, document=document)

    @property
    def sha256(self) -> str:
        """A hash of the values: comments and layout do not count."""
        plain = yaml.safe_dump(self.config, sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    @property
    def recipe(self) -> str:
        """The last folder but one of output_dir: the recipe in results, tables and plots. `/output` has none."""
        return self.output_dir.parent.name or "outputs"

    @property
    def variant(self) -> str:
        """The last folder of output_dir: the name of this run among its recipe's."""
        return self.output_dir.name

    def path(self, value: str) -> Path:
        return self.anchor / value

    def model(self, key: str = "base_model") -> str:
        """The base model: a local folder made absolute, or a name on the Hub as it is."""
        value = self.config[key]
        local = self.path(value)
        return str(local) if local.exists() or value.startswith(".") else value

    def claimed(self) -> contextlib.AbstractContextManager[int]:
        """Hold output_dir while something is trained into it. Raises click.ClickException when another process does."""
        remedy = "wait for its end, or --set output_dir to another folder"
        return files.locked(self.output_dir, busy=f"{self.output_dir}: another process trains into it; {remedy}.")

    def keep(self, plugins: Sequence[str] = ()) -> Path:
        """Write the file beside its outputs, with absolute paths and more plugins.

        Raises click.ClickException when the folder holds what another run file trained, other rows or somebody else:
        a trainer would resume from its checkpoints and train something that no file describes, or write over it.
        """
        config, found = values.absolute(self.config, self.anchor), inputs.digests(self.config, self.anchor)
        config["output_dir"] = str(self.output_dir)
        if digest := inputs.rows_digest(found):  # Axolotl's cache ignores the content of files
            config[PREPARED] = str(Path(config.get(PREPARED) or self.anchor / DEFAULT_PREPARED) / digest)
        if plugins:
            config["plugins"] = [*self.plugins, *plugins]
        folder = Path(config["output_dir"])
        files.require_writable(folder)
        patterns = TRAINED if (folder / KEPT).exists() else _SOMEBODYS
        if trained := [path for pattern in patterns for path in sorted(folder.glob(pattern))]:
            self._require_its_own(folder, trained[0].name, config, found)
        header = [line for line in self.text.splitlines() if line.startswith("#")][:8]
        body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=10**9)
        files.write_text(folder / INPUTS, json.dumps(found, indent=1) + "\n")
        files.write_text(folder / KEPT, "\n".join([*header, "", body]) if header else body)
        return folder / KEPT

    def _require_its_own(self, folder: Path, trained: str, config: dict[str, Any], found: dict[str, str]) -> None:
        remedy = "train with --overwrite to replace it, or --set output_dir to a new folder."
        if not (folder / KEPT).exists():
            words = f"{folder} holds {trained}, which none of these tools trained (no {KEPT} lies beside it)"
            raise self.error("output_dir", f"{words}; --set output_dir to a new folder.")
        before = yaml.safe_load(files.read_text(folder / KEPT))
        if {**before, PREPARED: None} != {**config, PREPARED: None}:
            raise self.error("output_dir", f"{folder} holds {trained} of another run file; {remedy}")
        known = files.read_json(folder / INPUTS) if (folder / INPUTS).exists() else found
        for key in sorted({*known, *found}):
            if known.get(key) != found.get(key):
                raise self.error(key, f"its content is not what {trained} in {folder} was trained with; {remedy}")


def load(source: str | Path) -> RunFile:
    """Read and check a run file; `-` is stdin.

    Raises click.ClickException, naming file, line and key, for YAML that is no run file: invalid, empty, a duplicate
    or unknown key, a number written as text, a missing base_model, datasets or output_dir, a secret.
    """
    name, text = source_text(source)
    document = _parsed(name, text)
    run = RunFile(document, text, values.anchor_of(document.data))
    for name in (run.recipe, run.variant):
        if not filenames.is_safe(name):
            words = f"its last two folders name the run in results, and {terminal.shown(name)} cannot"
            raise run.error("output_dir", f"{words}: {filenames.EXPECTED}; rename it.")
    if held := inputs.in_the_way(run.config, run.anchor):
        key, path = held
        raise run.error("output_dir", f"{key} reads {path} there, which training would write into; name a new folder.")
    return run


@functools.lru_cache(maxsize=16)
def _parsed(name: str, text: str) -> yamlfile.Document:
    """Once a process: Axolotl's hooks each load the run file anew."""
    _require_no_secret(name, text)
    document = yamlfile.load(text, name)
    of_types = keys.problems(document, (), document.data, keys.schema())
    for problem in itertools.chain(of_types, limits.problems(document)):
        raise problem.error(name)
    for key in NEEDED:
        if not document.data.get(key):
            raise click.ClickException(f"{name}: {key}: missing; a run file needs it, see recipes/ for examples.")
    return document


def _require_no_secret(name: str, text: str) -> None:
    """Refuse secrets: a run file is copied beside the outputs, into results and into Axolotl's model card."""
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
        name, text = "stdin", _decoded(sys.stdin.buffer.read(yamlloader.BYTES + 1))
    else:
        path = Path(source)
        if not path.is_file():
            raise click.UsageError(f"no run file {source}; recipes/ holds the rendered ones.")
        if path.stat().st_size > yamlloader.BYTES:
            raise yamlfile.too_long(str(source))
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
        if BASE_NAME.fullmatch(run.variant):
            raise run.error(
                "output_dir", f"its last folder names the variant, and {run.variant} is a base model's; rename."
            )
    return runs


def _decoded(data: bytes) -> str:
    if len(data) > yamlloader.BYTES:
        raise yamlfile.too_long("stdin")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"stdin: byte {error.start} is not UTF-8; a run file is UTF-8 text.") from None
