"""The ingredients of a recipe: plain YAML with a `recipe:` section of facts and Axolotl's keys below it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import keys, yamlfile
from lora_recipes.support import files

import click

RECIPES = ROOT / "templates" / "recipes"

_FACTS = {
    "title": str, "hardware": str, "cpu": bool, "gpus": int, "global_batch": int, "row_tokens": int,
    "notes": list, "variants": list,
}  # fmt: skip
"""The keys of the `recipe:` section of the ingredients, which do not go into the run file."""


@dataclass
class Rendered:
    """A run file in the making: values by Axolotl key, comments by path."""

    name: str
    variant: str
    facts: dict[str, Any]
    run: dict[str, Any]
    comments: dict[yamlfile.Path, str]
    source: str
    words: list[str] = field(default_factory=list)
    set_keys: set[str] = field(default_factory=set)


def templates(folder: Path) -> list[Path]:
    """The YAML files of a folder below templates/. Raises click.ClickException for a package without its checkout."""
    if not folder.is_dir():
        raise click.ClickException(
            f"there is no {folder}: templates are in a clone of lora-recipes, not in the installed package; "
            "run `pip install -e .` in the clone, or its tools/render.py."
        )
    return sorted(folder.glob("*.yaml"))


def recipe_names() -> list[str]:
    return [path.stem for path in templates(RECIPES)]


def load_recipe(recipe: str) -> Rendered:
    """Read the ingredients of a recipe, by name or path.

    Raises click.UsageError when there are none, click.ClickException for a mistake in them.
    """
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) or "/" in recipe else RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        if path.parent == RECIPES:
            known = recipe_names()
            near = keys.nearest(recipe, known)
            raise click.UsageError(f"no recipe {recipe!r}{near} Known: {', '.join(known)}; or give a path to your own.")
        raise click.UsageError(f"no ingredients file {recipe}; `tools/render.py --list` shows the recipes there are.")
    label = files.relative(path)
    document = yamlfile.load(files.read_text(path), label)
    facts = _checked_facts(document)
    return Rendered(path.stem, "", facts, document.data, document.comments, label)


def _checked_facts(document: yamlfile.Document) -> dict[str, Any]:
    facts = document.data.pop("recipe", None)
    if not isinstance(facts, dict):
        raise click.ClickException(
            f"{document.name}: recipe: expected a section with {', '.join(_FACTS)}; see templates/recipes/ for one."
        )
    for key, value in facts.items():
        if key not in _FACTS:
            raise document.error(("recipe", key), f"unknown key{keys.nearest(key, _FACTS)} Known: {', '.join(_FACTS)}.")
        if not isinstance(value, _FACTS[key]) or (isinstance(value, bool) and _FACTS[key] is int):
            raise document.error(("recipe", key), f"expected {_FACTS[key].__name__}, found {value!r}.")
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            raise document.error(("recipe", key), f"expected a list of texts, found {value!r}; quote its items.")
    for key in ("title", "hardware", "global_batch"):
        if key not in facts:
            raise document.error(("recipe",), f"lacks {key}; add it.")
    return {"cpu": False, "gpus": 1, "row_tokens": 0, "notes": [], "variants": []} | facts
