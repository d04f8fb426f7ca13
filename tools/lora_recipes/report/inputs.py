"""What a report is made of: the results below a folder and the figures that others published."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.rendering import render
from lora_recipes.results import result_files
from lora_recipes.results.systems import System
from lora_recipes.support import files

import click

PUBLISHED = ROOT / "results" / "published.json"
_ABSOLUTE = re.compile(r"(?<![\w./:~-])/(?:[\w.+@~-]+/)*[\w.+@~-]+")


def load(folder: Path) -> list[System]:
    """The systems measured below a folder, by recipe and then name, base first.

    They lie in result.json files as the tools write them, or in <recipe>/<variant>.json as published.
    Raises click.ClickException for a file that is truncated or foreign.
    """
    paths = sorted(_result_files(folder)) or published_files(folder)
    found: dict[tuple[str, str], System] = {}
    for path in paths:
        result = result_files.read(path)
        system = System(result["recipe"], result["variant"], path)
        other = found.setdefault((system.recipe, system.name), system)
        if other is not system:
            raise click.ClickException(
                f"{path}: {system.recipe} {system.name} is also in {other.path}; give the folder of one of them."
            )
    return sorted(found.values(), key=_order)


def _result_files(folder: Path) -> Iterator[Path]:
    """Those below a folder, through links too; a folder with a dot before its name is still being written."""
    seen: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(here)) in seen:
            folders.clear()  # a link to where it lies, or a second one
        elif result_files.NAME in names:
            yield Path(here) / result_files.NAME
        seen.add(real)


def published_files(folder: Path) -> list[Path]:
    """The <recipe>/<variant>.json files of a folder; what bench/ measured of speed is of no system."""
    found = [path for path in sorted(folder.glob("*/*.json")) if path.parent.name != "bench"]
    return [path for path in found if not (path.parent / "adapter_config.json").exists()]


def _order(system: System) -> tuple[str, int, str]:
    """By recipe, base first, then the variants as recipes/ has them, then the others by name."""
    known = render.usual()
    place = -1 if system.is_base else known.index(system.name) if system.name in known else len(known)
    return system.recipe, place, system.name


def published(recipe: str) -> list[dict[str, Any]]:
    """The rows that others published on a recipe, each with the `bertscore_model` where it is known."""
    file = _published_file()
    scored = file["settings"].get(recipe, {}).get("bertscore", {})
    more = {"bertscore_model": scored["model"]} if scored else {}
    return [{**row, **more} for row in file["rows"] if row["recipe"] == recipe]


def published_recipes() -> list[str]:
    return sorted({row["recipe"] for row in _published_file()["rows"]})


def _published_file() -> dict[str, Any]:
    try:
        return dict(json.loads(PUBLISHED.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise click.ClickException(
            f"{PUBLISHED}: cannot be read ({error}); restore it with `git checkout results/published.json`."
        ) from None


def publish(system: System, target: Path) -> Path:
    """Copy a result to <target>/<recipe>/<variant>.json: its losses inside, no path of this machine."""
    result = dict(system.result)
    if system.history:
        result["training"] = {**system.section("training"), "log_history": system.history}
    path = target / system.recipe / f"{system.name}.json"
    files.write_text(path, json.dumps(without_machine_paths(result), indent=1, ensure_ascii=False) + "\n")
    return path


def without_machine_paths(value: Any) -> Any:
    """A copy in which absolute paths count from the checkout, or are bare names outside of it."""
    if isinstance(value, dict):
        return {without_machine_paths(key): without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_machine_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if os.path.isabs(value) and "\n" not in value:
        return _portable(value)
    return _ABSOLUTE.sub(lambda found: _portable(found.group()), value)


def _portable(path: str) -> str:
    for root in (ROOT, Path.cwd()):
        if Path(path).is_relative_to(root):
            return str(Path(path).relative_to(root))
    return Path(path).name
