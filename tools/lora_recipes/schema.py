"""The keys of the pinned Axolotl, read from its own pydantic models and stored as JSON.

`python -m lora_recipes.schema` writes axolotl_keys.json anew; a test holds it against the installed
Axolotl. Stored, so that rendering and checking keys need neither Axolotl nor the seconds it takes to
import. A key maps to its types joined with |, or to a mapping of the keys below it, in which ""
holds the plain types that it takes as well.
"""

import enum
import json
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
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return {name: _annotation(annotation, (*seen, model)) for name, annotation in sorted(fields.items())}


def _annotation(annotation: Any, seen: tuple[Any, ...]) -> Any:
    plain: set[str] = set()
    below: dict[str, Any] = {}
    for kind in _flat(annotation):
        if hasattr(kind, "model_fields"):
            if kind not in seen:
                below = _merged(below, _model(kind, seen))
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


def main() -> None:
    from importlib.metadata import version

    content = {"axolotl": version("axolotl"), "keys": read_installed()}
    KEYS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
