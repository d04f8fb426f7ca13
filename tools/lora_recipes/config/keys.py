"""The keys that the pinned Axolotl knows, their types, and the nearest one to a typing mistake."""

import contextlib
import difflib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.config import scrubbing, yamlfile

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
    node, unknown = _walk(path)
    return None if unknown else node


def nearest_key(path: yamlfile.Path) -> str:
    """', did you mean …?' for a path whose key Axolotl does not have; '.' where none is near."""
    node, unknown = _walk(path)
    near = nearest(str(unknown[-1]), [key for key in node if key]) if unknown and isinstance(node, dict) else ""
    above = yamlfile.dotted(unknown[:-1])
    return near.replace("did you mean '", f"did you mean '{above}{'.' if above else ''}") or "."


def _walk(path: yamlfile.Path) -> tuple[Any, yamlfile.Path]:
    """The schema at a path, and () where the path is in it; else the schema above the first key that it lacks."""
    node: Any = schema()
    for n, part in enumerate(path, 1):
        if isinstance(part, int):
            continue
        if isinstance(node, str):
            return ("any", ()) if "dict" in node or "any" in node else (node, path[:n])
        if part not in node:
            return node, path[:n]
        node = node[part]
    return node, ()


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


def problems(document: yamlfile.Document, path: yamlfile.Path, node: Any, known: Any) -> Iterator[yamlfile.Problem]:
    """Unknown keys, which Axolotl drops in silence, and values of wrong types, at any depth."""
    if isinstance(node, list) and isinstance(known, dict):
        for index, item in enumerate(node):
            here = (*path, index)
            if isinstance(item, dict):
                yield from problems(document, here, item, known)
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
            near = nearest(str(key), [k for k in known if k])
            fix = near.removeprefix(", ") or "delete it"
            found = "Axolotl has no such key and would ignore it"
            yield yamlfile.Problem("unknown-key", here, document.line(here), found, fix)
        else:
            yield from problems(document, here, value, known[key])


def _fits(value: Any, types: list[str]) -> bool:
    kind = "null" if value is None else type(value).__name__
    return kind == "null" or "any" in types or kind in types or (kind == "int" and "float" in types)


def _retyping(value: Any, wanted: str) -> str:
    if isinstance(value, bool) and "str" in wanted:
        return "YAML reads yes, no, on and off as true and false: quote the word"
    if isinstance(value, str) and ("int" in wanted or "float" in wanted):
        return "write a number without quotes"
    return f"write {'a' if wanted[0] not in 'aeio' else 'an'} {wanted}"
