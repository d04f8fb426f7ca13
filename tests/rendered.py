"""A recipe as it is rendered."""

from typing import Any

from lora_recipes.config import yamlfile
from lora_recipes.rendering import render


def parsed(recipe: str, variant: str, *settings: str) -> dict[str, Any]:
    return yamlfile.load(render.render(recipe, variant, settings), "rendered").data
