"""What a run file reads from this machine: its local files and folders, and what identifies their content."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lora_recipes.support import files

DATA = ("datasets", "test_datasets")


def local(config: dict[str, Any], anchor: Path) -> dict[str, Path]:
    """Dotted key -> the file or folder of this machine that it names."""
    named = {key: config.get(key) for key in ("base_model", "deepspeed", "chat_template_jinja")}
    for key in DATA:
        for index, entry in enumerate(config.get(key) or []):
            several = entry.get("data_files")
            for place, value in enumerate(several if isinstance(several, list) else [several]):
                named[f"{key}.{index}.data_files.{place}"] = value
            named[f"{key}.{index}.path"] = None if several else entry.get("path")
    paths = {key: anchor / value for key, value in named.items() if isinstance(value, str) and value}
    return {key: path for key, path in paths.items() if _exists(path)}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text that no path can be
        return False


def in_the_way(config: dict[str, Any], anchor: Path) -> tuple[str, Path] | None:
    """The first key whose file or folder lies in output_dir, or is a folder of rows that output_dir lies in."""
    output = (anchor / config["output_dir"]).resolve()
    for key, path in local(config, anchor).items():
        found = path.resolve()
        if found == output or output in found.parents:
            return key, path
        if key.endswith(".path") and path.is_dir() and found in output.parents and found != anchor.resolve():
            return key, path
    return None


def digests(config: dict[str, Any], anchor: Path) -> dict[str, str]:
    """Dotted key -> a hash of what is in its file or folder, wherever that lies."""
    return {key: _digest(path) for key, path in local(config, anchor).items()}


def rows_digest(found: dict[str, str]) -> str:
    """Eight digits of a hash of the local rows among such digests; '' where all are on the Hub."""
    rows = {key: digest for key, digest in found.items() if key.startswith(DATA)}
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:8] if rows else ""


def _digest(path: Path) -> str:
    """Of a folder without what is hidden in it, as a clone's .git, which holds large files a second time."""
    if path.is_file():
        return files.sha256(path)
    below = [one for one in sorted(path.rglob("*")) if one.is_file()]
    names = [(one.relative_to(path), one) for one in below]
    held = [[name.as_posix(), files.sha256(one)] for name, one in names if not any(p[0] == "." for p in name.parts)]
    return hashlib.sha256(json.dumps(held).encode()).hexdigest()
