"""The stored table of Axolotl's keys: the pinned release, its plugins, and what the newest one changed."""

import functools
import json
from pathlib import Path
from typing import Any

from lora_recipes import keys


@functools.cache
def table() -> dict[str, Any]:
    """axolotl_keys.json: `axolotl`, `keys`, `plugins`, `optimizers`, `dead`, `newest`."""
    return dict(json.loads(Path(keys.__file__).with_name("axolotl_keys.json").read_text(encoding="utf-8")))


def known_to(plugins: Any) -> tuple[dict[str, Any], bool]:
    """The keys that Axolotl knows with these plugins, and whether the keys of all of them are known."""
    known, complete = dict(keys.schema()), True
    for name in plugins if isinstance(plugins, list) else []:
        if name in table()["plugins"]:
            known |= table()["plugins"][name]
        elif not str(name).startswith("lora_recipes."):
            complete = False
    return known, complete
