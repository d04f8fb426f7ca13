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
import pkgutil
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
    """What either takes: the data sets of some trainers have keys of their own."""
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


def plugins() -> dict[str, Any]:
    """Plugin -> the keys that it adds, of the plugins that come with Axolotl and can be imported here."""
    import axolotl.integrations
    from axolotl.integrations.base import BasePlugin

    found = {}
    for package in pkgutil.iter_modules(axolotl.integrations.__path__, "axolotl.integrations."):
        if not package.ispkg:
            continue
        try:
            module = importlib.import_module(package.name)
            kinds: list[Any] = [one for one in vars(module).values() if BasePlugin in getattr(one, "__bases__", ())]
            for kind in kinds:
                path, _, model = (kind().get_input_args() or "").rpartition(".")
                found[f"{package.name}.{kind.__name__}"] = (
                    _model(getattr(importlib.import_module(path), model), ()) if path else {}
                )
        except ImportError:  # a plugin whose library is not installed: its keys stay unknown
            continue
    return found


def optimizers() -> list[str]:
    """The optimizers that Axolotl takes: transformers' and its own."""
    from axolotl.utils.schemas.enums import CustomSupportedOptimizers
    from transformers.training_args import OptimizerNames

    return sorted({item.value for names in (OptimizerNames, CustomSupportedOptimizers) for item in names})


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
        "plugins": plugins(),
        "keys": known,
    }
    KEYS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
