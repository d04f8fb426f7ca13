"""The keys that the pinned Axolotl knows, their types, and the nearest one to a typing mistake."""

import contextlib
import difflib
import functools
import json
from pathlib import Path
from typing import Any

from lora_recipes.config import yamlfile

import click
import yaml


def nearest(word: str, known: Any) -> str:
    """', did you mean …?' or nothing."""
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f", did you mean {near[0]!r}?" if near else ""


@functools.cache
def table() -> dict[str, Any]:
    """axolotl_keys.json, which schema.py writes: keys, plugins, optimizers, and what the newest release dropped."""
    return dict(json.loads(Path(__file__).with_name("axolotl_keys.json").read_text(encoding="utf-8")))


def schema() -> dict[str, Any]:
    """Key -> type of every key of the pinned Axolotl, nested as the keys are."""
    return dict(table()["keys"])


def known_to(plugins: Any) -> tuple[dict[str, Any], bool]:
    """The keys that Axolotl knows with these plugins, and whether the keys of all of them are known."""
    known, complete = schema(), True
    for name in plugins if isinstance(plugins, list) else []:
        if name in table()["plugins"]:
            known |= table()["plugins"][name]
        elif not str(name).startswith("lora_recipes."):
            complete = False
    return known, complete


def known_type(path: yamlfile.Path) -> Any:
    """The type of a key as Axolotl's schema has it; None where there is no such key."""
    node: Any = schema()
    for part in path:
        if isinstance(part, int):
            continue
        if isinstance(node, str):
            return "any" if "dict" in node or "any" in node else None
        if part not in node:
            return None
        node = node[part]
    return node


def nearest_key(path: yamlfile.Path) -> str:
    node: Any = schema()
    for n, part in enumerate(path):
        if isinstance(part, int):
            continue
        if not isinstance(node, dict) or part not in node:
            near = nearest(str(part), [k for k in node if k] if isinstance(node, dict) else [])
            prefix = yamlfile.dotted(path[:n])
            return near.replace("did you mean '", f"did you mean '{prefix}{'.' if prefix else ''}") or "."
        node = node[part]
    return "."


def typed(key: str, text: str, types: Any) -> Any:
    """The text of a --set value as the type that the key has in Axolotl's schema."""
    wanted = (types.get("", "any") if isinstance(types, dict) else types).split("|")
    if text == "null" and "null" in wanted:
        return None
    for name, kind in (("int", int), ("float", float)):  # before YAML, which reads 1e-4 as text
        if name in wanted:
            with contextlib.suppress(ValueError):
                return kind(text)
    if "str" in wanted and not {"bool", "list", "dict"} & set(wanted):
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise click.UsageError(f"--set {key}: {text!r} is not valid YAML; quote it.") from None
    if "any" in wanted or ("null" if value is None else type(value).__name__) in wanted:
        return value
    if "str" in wanted:
        return text
    expected = " or ".join(name for name in wanted if name != "null")
    raise click.UsageError(f"--set {key}: expected {expected}, found {text!r}.")
