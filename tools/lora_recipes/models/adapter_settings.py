"""The settings that PEFT saves beside an adapter's weights."""

import json
from pathlib import Path
from typing import Any

import click

NAME = "adapter_config.json"

BESIDE_THE_BASE = (True, False, "gaussian", "orthogonal", "eva")
"""Initialisations of LoRA that leave the base's weights alone; all others (PiSSA, OLoRA, LoftQ, …) change them."""


def read(path: Path) -> dict[str, Any]:
    """A saved adapter's settings. Raises click.ClickException where one is not of the type that PEFT has for it."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise click.ClickException(
            f"{path}: not valid JSON; the file is damaged: restore it, from a checkpoint-* folder for example."
        ) from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise click.ClickException(f"{path}: not of a LoRA adapter; take one that PEFT saved.")
    _require_types(path, config)
    return config


def _require_types(path: Path, config: dict[str, Any]) -> None:
    """The types are those of PEFT's LoraConfig; keys that it does not know are another PEFT's.

    A null stands for what is not set, as Axolotl saves `fan_in_fan_out: null`; only PEFT's two numbers are no nulls.
    """
    from peft import LoraConfig
    from pydantic import TypeAdapter, ValidationError

    set_ones = {name: value for name, value in config.items() if value is not None or name in ("r", "lora_alpha")}
    typed = {name: value for name, value in set_ones.items() if name in LoraConfig.__dataclass_fields__}
    if isinstance(typed.get("lora_alpha"), float):  # PEFT calculates with it, whatever its annotation says
        del typed["lora_alpha"]
    if str(typed.get("init_lora_weights")).startswith("pissa_niter_"):  # spelled out in PEFT's annotation
        del typed["init_lora_weights"]
    try:
        TypeAdapter(LoraConfig).validate_python(typed)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"][:1]))
        found = f"{key}: {config.get(key)!r}: " if key else ""
        raise click.ClickException(
            f"{path}: {found}{wrong['msg']}; restore it, from a checkpoint-* folder for example."
        ) from None


def changes_base(folder: Path) -> bool:
    """Whether a saved adapter changes weights of its base, which stay changed while it is switched off."""
    config = read(folder / NAME)
    trains_biases = config.get("bias", "none") != "none"
    return (
        config.get("init_lora_weights", True) not in BESIDE_THE_BASE
        or trains_biases
        or bool(config.get("layer_replication"))
    )
