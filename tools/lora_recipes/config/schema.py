"""The keys of the pinned Axolotl, read from its own pydantic models and stored as JSON.

`python -m lora_recipes.config.schema` writes axolotl_keys.json anew; a test holds it against the installed
Axolotl. Stored, so that rendering and checking keys need neither Axolotl nor the seconds it takes to
import. A key maps to its types joined with |, or to a mapping of the keys below it, in which ""
holds the plain types that it takes as well.

`python -m lora_recipes.config.schema FOLDER` notes too what a newer release, unpacked in FOLDER, has dropped:
its schema is imported from there with the libraries of this environment, nothing is installed.
"""

import enum
import importlib
import json
import os
import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

KEYS = Path(__file__).with_name("axolotl_keys.json")
_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null", dict: "dict", list: "list"}


def read_installed() -> dict[str, Any]:
    """The nested keys of the installed Axolotl; imports it (about 3 s)."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    return _model(AxolotlInputConfig, ())


def _model(model: Any, seen: tuple[Any, ...]) -> dict[str, Any]:
    fields = {name: field.annotation for name, field in model.model_fields.items()}
    if model.model_config.get("populate_by_name"):  # then a field is taken by its own name and by its alias
        fields |= {field.alias: field.annotation for field in model.model_fields.values() if field.alias}
    else:
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return {name: _annotation(annotation, (*seen, model)) for name, annotation in sorted(fields.items())}


def _annotation(annotation: Any, seen: tuple[Any, ...]) -> Any:
    plain: set[str] = set()
    below: dict[str, Any] = {}
    for kind in _flat(annotation):
        if hasattr(kind, "model_fields"):
            if kind not in seen:
                below = _merged(below, _model(kind, seen))
            if kind.__name__ == "FSDPConfig":  # its keys are taken with the prefix of older releases, too
                below |= {f"fsdp_{key}": value for key, value in below.items() if not key.startswith("fsdp_")}
        else:
            plain.add(kind if isinstance(kind, str) else _PLAIN.get(kind, "any"))
    if "float" in plain:
        plain.discard("str")  # learning_rate takes text and makes a number of it: text is still a mistake
    names = "|".join(sorted(plain))
    return below | {"": names} if below else names


def _merged(first: Any, second: Any) -> Any:
    """What either takes: the data set of one trainer has keys that another's has not."""
    if isinstance(first, str) and isinstance(second, str):
        return "|".join(sorted({*first.split("|"), *second.split("|")} - {""}))
    first, second = ({"": side} if isinstance(side, str) else side for side in (first, second))
    keys = {**first, **second}
    return {
        key: _merged(first.get(key, ""), second.get(key, "")) if key in first and key in second else keys[key]
        for key in keys
    }


def _flat(annotation: Any) -> list[Any]:
    """The plain types and pydantic models in an annotation, through unions, lists and literals."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _flat(args[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for arg in args for kind in _flat(arg)]
    if origin is typing.Literal:
        return [type(value) if not isinstance(value, enum.Enum) else str for value in args]
    if origin is list:
        return ["list", *(kind for arg in args for kind in _flat(arg) if hasattr(kind, "model_fields"))]
    if origin is dict:
        return ["dict"]
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return [str]
    return [annotation]


_REPLACED = {"fsdp": "use fsdp_config and fsdp_version"}
"""What took the place of a key that the newest release has dropped."""

_BY_PREFIX = ("wandb_", "comet_", "mlflow_", "trackio_", "swanlab_")
"""Axolotl passes trackers' keys on by prefix, so that their names are nowhere in its code."""


def _installed() -> Path:
    return Path(str(importlib.import_module("axolotl").__path__[0]))


def plugins() -> dict[str, Any]:
    """Plugin -> the keys that it adds, of the plugins that come with Axolotl and can be imported here."""
    found = {}
    for file in sorted(_installed().glob("integrations/*/*.py")):
        text = file.read_text(encoding="utf-8")
        named = re.search(r"class (\w+)\(BasePlugin\)", text)
        args = re.search(r"def get_input_args.*?return \"([\w.]+)\"", text, re.S)
        if not named:
            continue
        name = f"axolotl.integrations.{file.parent.name}.{named[1]}"
        try:
            module, _, model = args[1].rpartition(".") if args else ("", "", "")
            found[name] = _model(getattr(importlib.import_module(module), model), ()) if args else {}
        except ImportError:  # a plugin whose library is not here: its keys stay unknown
            continue
    return found


def optimizers() -> list[str]:
    """The optimizers that Axolotl takes: transformers' and its own."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers.training_args import OptimizerNames

    return sorted({item.value for names in (OptimizerNames, CustomSupportedOptimizers) for item in names})


def dead(known: dict[str, Any]) -> list[str]:
    """Keys that the schema takes and no line of Axolotl's code reads."""
    schemas, code = "", ""
    for file in _installed().rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        schemas, code = (schemas + text, code) if "schemas" in file.parts else (schemas, code + text)
    words = set(re.findall(r"\w+", code))
    unread = [key for key in known if key not in words and not key.startswith(_BY_PREFIX)]
    return [key for key in unread if len(re.findall(rf"\b{key}\b", schemas)) == 1 and key != "model_revision"]


def deprecated() -> dict[str, str]:
    """Key -> the keys that took its place, as Axolotl's schema names them."""
    from axolotl.utils.schemas.config import AxolotlInputConfig

    found = {}
    for key, field in AxolotlInputConfig.model_fields.items():
        words = " ".join(str(field.deprecated or "").split())
        instead = [name for name in re.findall(r"`([^`]+)`", words) if name != key] or re.findall(r"Use (\w+)", words)
        if words:
            found[key] = ", ".join(name.rstrip(".") for name in instead)
    return found


def _paths(node: Any, above: str = "") -> set[str]:
    if not isinstance(node, dict):
        return set()
    here = {f"{above}{key}": below for key, below in node.items() if key}
    return set(here) | {path for key, below in here.items() for path in _paths(below, f"{key}.")}


def newest(known: dict[str, Any], folder: str) -> dict[str, Any]:
    """What the release unpacked in a folder has dropped; read in a process of its own."""
    code = "import json; from lora_recipes.config import schema; print(json.dumps(schema.read_installed()))"
    path = os.pathsep.join([folder, str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    theirs = _paths(json.loads(done.stdout.splitlines()[-1]))
    release = next(Path(folder).glob("axolotl-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    dropped = sorted(_paths(known) - theirs)
    return {"axolotl": release, "dropped": {key: _REPLACED.get(key, "") for key in dropped}}


def main() -> None:
    from importlib.metadata import version

    known = read_installed()
    stored = json.loads(KEYS.read_text(encoding="utf-8"))
    content = {
        "axolotl": version("axolotl"),
        "newest": newest(known, sys.argv[1]) if len(sys.argv) > 1 else stored["newest"],
        "optimizers": optimizers(),
        "dead": dead(known),
        "deprecated": deprecated(),
        "plugins": plugins(),
        "keys": known,
    }
    KEYS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
