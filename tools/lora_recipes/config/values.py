"""What values of a run file come to: steps, warm-up, DeepSpeed's settings, and where its paths lead."""

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.support import files, terminal

import click
import yaml


def steps_per_epoch(rows: int, at_once: int, accumulation: int) -> int:
    """Optimizer steps of an epoch, as transformers counts them: the last micro batch and the last step may be short.

    at_once: the rows of one micro batch on all processes.
    """
    return max(1, math.ceil(math.ceil(rows / at_once) / accumulation))


def warmup_steps(total: int, steps: float | None, ratio: float | None) -> int:
    """Of `total` steps, as Axolotl 0.19 counts them: warmup_steps, or a share of the whole, or 3 % up to 100."""
    if steps is not None:
        warmup = int(steps)
    elif ratio is not None:
        warmup = int(ratio * total)
    else:
        warmup = min(int(0.03 * total), 100)
    return 2 if warmup == 1 else warmup  # as Axolotl: one step of warm-up would start at the full rate


def deepspeed_settings(value: Any, folder: Path) -> dict[str, Any]:
    """DeepSpeed's settings under the `deepspeed` key: a mapping, or the path of a JSON file, seen from `folder`.

    Raises click.ClickException for a file that is not there or holds no JSON mapping.
    """
    if not isinstance(value, str) or not value:
        return _known_stage(value or {}, "deepspeed")
    path = folder / value
    if not path.is_file():
        raise click.ClickException(f"there is no file {value}; take one of deepspeed_configs/.")
    try:
        found = json.loads(files.read_text(path))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise click.ClickException(f"{value}, {place}: invalid JSON: {error.msg}; correct it there.") from None
    except RecursionError:
        raise click.ClickException(f"{value}: nested too deep; DeepSpeed's settings have a few levels.") from None
    return _known_stage(found, value)


def _known_stage(settings: Any, name: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise click.ClickException(f"{name} holds no mapping; write DeepSpeed's settings as {{ … }}.")
    zero = settings.get("zero_optimization") or {}
    stage = zero.get("stage", 0) if isinstance(zero, dict) else zero
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        found = terminal.shown(stage, 80)
        raise click.ClickException(f"{name}: expected 0, 1, 2 or 3 as stage of zero_optimization, found {found}.")
    return settings


def zero_stage(settings: dict[str, Any]) -> int:
    """The ZeRO stage of DeepSpeed's settings; 0 where they name none."""
    zero = settings.get("zero_optimization")
    stage = zero.get("stage") if isinstance(zero, dict) else None
    return stage if isinstance(stage, int) else 0


def _local_inputs(config: dict[str, Any]) -> list[str]:
    """The relative paths that a run file may read."""
    inputs = [config.get("base_model"), config.get("deepspeed")]
    for key in ("datasets", "test_datasets"):
        entries = config.get(key) if isinstance(config.get(key), list) else []
        inputs += [entry.get("path") for entry in entries or [] if isinstance(entry, dict)]
    return [value for value in inputs if isinstance(value, str) and not Path(value).is_absolute()]


def plugin_is_there(name: str, folder: Path) -> bool:
    """Whether Axolotl finds a plugin: in the environment, below `folder`, or among its own integrations.

    One that it does not find it logs, and trains without it.
    """
    module = name.rpartition(".")[0]
    return any(is_module(path, folder) for path in (module, f"axolotl.integrations.{module}"))


def is_module(module: str, folder: Path) -> bool:
    """Whether a module lies below `folder`, or can be found in the environment."""
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    path = folder.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file() or path.is_dir():
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except Exception:  # whatever a parent package raises when it is imported
        return False


def anchor_of(config: dict[str, Any]) -> Path:
    """The folder of relative paths: the working directory, as for Axolotl, or this checkout where only it has any.

    A working directory that is another checkout keeps its own, also where they are missing. So a rendered run file
    can be trained from elsewhere: `cd elsewhere && … | axolotl train -`.
    """
    here = Path.cwd()
    inputs = _local_inputs(config)
    inside = [value for value in inputs if ".." not in Path(value).parts]  # what lies beside the checkout is not ours
    found = [value for value in inside if os.path.exists(value)]
    elsewhere = [value for value in inside if os.path.exists(ROOT / value)]
    in_another_checkout = here != ROOT and (here / "tools" / "lora_recipes").is_dir()
    return ROOT if elsewhere and not found and not in_another_checkout else here


def absolute(config: dict[str, Any], anchor: Path) -> dict[str, Any]:
    """A copy of the configuration in which every local path is absolute."""
    config = yaml.safe_load(yaml.safe_dump(config))  # a deep copy without shared anchors
    for holder in (config, *(config.get("datasets") or []), *(config.get("test_datasets") or [])):
        for key in ("base_model", "deepspeed", "path", "data_files", "chat_template_jinja"):
            if key in holder:
                holder[key] = local(holder[key], anchor)
    for key in ("output_dir", "dataset_prepared_path"):
        if config.get(key):
            config[key] = str(anchor / config[key])
    return config


def local(value: Any, anchor: Path) -> Any:
    """A path that is there, or each of several, made absolute; another value as it is."""
    if isinstance(value, list):
        return [local(item, anchor) for item in value]
    return str(anchor / value) if isinstance(value, str) and value and os.path.exists(anchor / value) else value
