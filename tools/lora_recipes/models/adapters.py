"""Adapters on disk: whole, with all weights that they should have, and of the base model that a run file names."""

import json
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import shards

import click

FILES = ("adapter_model.safetensors", "adapter_config.json")


def require(folder: Path, run: RunFile | None = None) -> dict[str, Any]:
    """Check a saved adapter and give its configuration.

    Raises click.ClickException when it is absent, pickled, cut off, empty, not finite or all zero, has an A without
    its B or another rank than it says, and, with a run file, when it belongs to another base, lacks layers, or was
    trained with another rank. ZeRO-3 has saved 40-byte adapters without an error.
    """
    weights, settings = (folder / name for name in FILES)
    if not weights.is_file() and (pickled := folder / "adapter_model.bin").is_file():
        raise click.ClickException(
            f"{pickled}: a pickle, which can run code when it is read; save the adapter as safetensors."
        )
    for path in (weights, settings):
        if not path.is_file():
            raise click.ClickException(
                f"{folder} holds no adapter ({path.name} is missing); train first, or give --adapter."
            )
    config = _settings(settings)
    shapes = _require_tensors(weights, config)
    if run is not None:
        _require_base(folder, config, run)
        _require_layers(weights, config, shapes, Path(run.model()))
    return config


def _settings(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise click.ClickException(f"{path}: not valid JSON; the adapter is damaged: train again.") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise click.ClickException(f"{path}: not of a LoRA adapter; take one that PEFT saved.")
    return config


def _require_tensors(path: Path, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors by name."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise click.ClickException(
            f"{path}: not a whole safetensors file ({error}); train again or restore it."
        ) from None
    lora_a = {name for name in tensors if ".lora_A." in name}
    lora_b = {name for name in tensors if ".lora_B." in name}
    if not lora_a or not lora_b:
        raise click.ClickException(f"{path}: empty: it holds no LoRA weights; train again.")
    if lonely := {name.replace(".lora_A.", ".lora_B.") for name in lora_a} ^ lora_b:
        raise click.ClickException(
            f"{path}: {sorted(lonely)[0]} has no counterpart; the adapter is damaged: train again."
        )
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise click.ClickException(
                f"{path}: {name} holds values that are not finite; training diverged: lower the learning rate."
            )
        rank = tensor.shape[0] if name in lora_a else tensor.shape[-1] if name in lora_b else None
        if tensor.ndim == 2 and rank is not None and rank not in ranks:
            raise click.ClickException(
                f"{path}: {name} has rank {rank}, {FILES[1]} says {config.get('r')}; "
                "the two files are of different adapters: restore or train again."
            )
    if all(not tensors[name].any() for name in lora_b):
        raise click.ClickException(
            f"{path}: every lora_B is zero: the adapter changes nothing; training did not reach it."
        )
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_base(folder: Path, config: dict[str, Any], run: RunFile) -> None:
    trained_on, named = str(config.get("base_model_name_or_path")), run.model()
    if Path(trained_on).name != Path(named).name:
        raise click.ClickException(
            f"{folder}: the adapter was trained on {trained_on}, {run.name} names {run.config['base_model']}; "
            "give the run file that it was trained with."
        )
    rank = run.config.get("lora_r")
    if folder.resolve() == run.output_dir.resolve() and rank not in (None, config.get("r")):
        raise click.ClickException(
            f"{folder}: the adapter has rank {config.get('r')}, {run.name} says lora_r: {rank}; "
            "give the run file that it was trained with, or train again."
        )


def _require_layers(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], base: Path) -> None:
    """All layers of the base that the adapter names, in the base's shapes; of a local base in safetensors.

    Weights that transformers renames when it loads them are left to PEFT, which compares shapes too.
    """
    if not any(base.glob("*.safetensors")):
        return
    layers = {
        name.removesuffix(".weight"): entry.shape
        for name, entry in shards.tensors_of(base).items()
        if name.endswith(".weight") and len(entry.shape) == 2 and shards.dtype_of(entry) is not None
    }
    adapted = {
        name.removeprefix("base_model.model.").partition(".lora_A.")[0]: (
            shapes[name.replace(".lora_A.", ".lora_B.")][0],
            shape[-1],
        )
        for name, shape in shapes.items()
        if ".lora_A." in name and len(shape) == 2
    }
    for layer, shape in adapted.items():
        if layer in layers and sorted(layers[layer]) != sorted(shape):
            raise click.ClickException(
                f"{path}: {layer} is {list(shape)} in the adapter and {list(layers[layer])} in {base}; "
                "the adapter belongs to another base model."
            )
    targets = config.get("target_modules")
    chosen = any(config.get(key) for key in ("layers_to_transform", "exclude_modules", "layers_pattern"))
    if isinstance(targets, list) and not chosen and adapted.keys() <= layers.keys():
        named = [layer for layer in layers if layer.rpartition(".")[2] in targets]
        if missing := [layer for layer in named if layer not in adapted]:
            raise click.ClickException(
                f"{path}: {len(missing)} of {len(named)} layers have no LoRA weights, the first is {missing[0]}; "
                "it was not saved whole: train again."
            )
