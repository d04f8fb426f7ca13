"""Adapters on disk: whole, with all that PEFT expects of them, and of the base model that a run file names."""

import warnings
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import adapter_settings, loading
from lora_recipes.support import libraries

import click

FILES = ("adapter_model.safetensors", adapter_settings.NAME)

NAME = "default"
"""PEFT's name for the adapter of a model that has one."""

_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "module.": "DeepSpeed or DistributedDataParallel",
}
"""What a wrapper puts before the names of a model's weights, and whose wrapper it is."""


def require(folder: Path, run: RunFile) -> Any:
    """Check a saved adapter; PEFT's model of it on a base without weights, as `attach` gives it.

    None when the base's configuration cannot be had, with which nothing could be compared. Raises
    click.ClickException when the adapter is absent, pickled, cut off, empty, not finite or all zero, of another base
    or rank than the run file names, or not what PEFT expects for that base. ZeRO-3 has saved 40-byte adapters without
    an error.
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
    config = adapter_settings.read(settings)
    tensors = tensors_of(folder)
    _require_base(folder, config, run)
    try:
        base = loading.base_without_weights(run)
    except click.ClickException:
        return None  # whoever loads the base says why
    model = attach(base, folder, tensors)
    _require_rank(folder, config, run)
    return model


def _require_base(folder: Path, config: dict[str, Any], run: RunFile) -> None:
    trained_on, named = str(config.get("base_model_name_or_path")), run.model()
    if Path(trained_on).name != Path(named).name:
        raise click.ClickException(
            f"{folder}: the adapter was trained on {trained_on}, {run.name} names {run.config['base_model']}; "
            "give the run file that it was trained with."
        )


def _require_rank(folder: Path, config: dict[str, Any], run: RunFile) -> None:
    rank = run.config.get("lora_r")
    if folder.resolve() == run.output_dir.resolve() and rank not in (None, config.get("r")):
        raise click.ClickException(
            f"{folder}: the adapter has rank {config.get('r')}, {run.name} says lora_r: {rank}; "
            "give the run file that it was trained with, or train again."
        )


def tensors_of(folder: Path) -> dict[str, Any]:
    """The tensors by name. Raises for a file that is cut off, empty, not finite, or that changes nothing."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / FILES[0]
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise click.ClickException(
            f"{path}: not a whole safetensors file ({error}); restore it, from a checkpoint-* folder for example."
        ) from None
    if not any("lora_" in name for name in tensors):
        raise click.ClickException(
            f"{path}: empty: it holds no LoRA weights; take those of a checkpoint-* folder, or train again."
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise click.ClickException(
                f"{path}: {name} is of {dtype}, and LoRA's weights are of 16 or 32 bits; restore it."
            )
        if not torch.isfinite(tensor).all():
            raise click.ClickException(
                f"{path}: {name} holds values that are not finite; training diverged: lower the learning rate."
            )
    zeros = [name for name in tensors if name.endswith((".lora_B.weight", ".lora_embedding_A"))]  # as training begins
    if zeros and not any(tensors[name].any() for name in zeros):
        raise click.ClickException(
            f"{path}: every lora_B is zero: the adapter changes nothing; training did not reach it."
        )
    return tensors


def attach(base: Any, folder: Path, tensors: dict[str, Any]) -> Any:
    """PEFT's model of an adapter on a base that lies on torch's meta device; the base's modules are changed in place.

    What `tensors` hold is on the CPU in it, and nothing else takes memory. Raises click.ClickException where PEFT
    expects other tensors for this base, or other shapes.
    """
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    path, name = folder / FILES[0], base.config.name_or_path or type(base).__name__
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    embeddings = [f".{place}." for place, module in base.named_modules() if any(module is end for end in ends)]
    config = LoraConfig.from_pretrained(str(folder))
    config.init_lora_weights = True  # the values come from the file; some initialisations decompose the base's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PEFT's own remarks none is about what is wrong with an adapter
            model = get_peft_model(base, config, adapter_name=NAME, low_cpu_mem_usage=True).eval()
        saved = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
        _require_shapes(path, name, {**model.state_dict(), **saved}, tensors, embeddings)
        for module in model.modules():
            if isinstance(module, LoraLayer) and hasattr(module.get_base_layer(), "weight"):
                module.get_base_layer().weight = _placeholder(module.get_base_layer().weight)
        missing, unexpected = _load(model, saved, tensors)
    except (ValueError, RuntimeError) as error:
        raise click.ClickException(
            f"{path}: PEFT does not load it on {name}: {libraries.reason(error)}; "
            "give the base that the adapter was trained on."
        ) from None
    if unexpected:
        raise click.ClickException(
            f"{path}: {len(unexpected)} of its keys match no weight of {name}, the first is {unexpected[0]}; "
            f"{_remedy(unexpected[0])}."
        )
    if missing:
        raise click.ClickException(
            f"{path}: {len(missing)} of the {len(saved)} tensors that PEFT expects for {name} are missing, the first "
            f"is {missing[0]}; it was not saved whole: restore it, from a checkpoint-* folder for example."
        )
    return model


def is_given(parameter: Any) -> bool:
    """Whether a parameter of an attached model has values of its own: those of the adapter's file."""
    return not parameter.is_meta and parameter.untyped_storage().nbytes() >= parameter.nbytes


def _placeholder(weight: Any) -> Any:
    """A weight of the same shape in the memory of one element, on the CPU: where PEFT then leaves A and B as well."""
    import torch

    return torch.nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)


def _load(model: Any, saved: dict[str, Any], tensors: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Load the tensors as PEFT does; the keys that it misses, and those that it does not know."""
    from peft import set_peft_model_state_dict

    try:
        keys: Any = set_peft_model_state_dict(model, dict(tensors), adapter_name=NAME, low_cpu_mem_usage=True)
    except KeyError:  # how PEFT says that a module is missing that is saved whole
        known = {*saved, *model.state_dict()}
        return [key for key in saved if key not in tensors], [key for key in tensors if key not in known]
    missing = [key for key in keys.missing_keys if "lora_" in key]  # and all weights of the base
    plain = [[key.replace(f".{NAME}", "") for key in found] for found in (missing, keys.unexpected_keys)]
    return plain[0], plain[1]


def _remedy(key: str) -> str:
    """What helps against a key that matches no weight."""
    for prefix, wrapper in _WRAPPERS.items():
        if key.startswith(prefix) or f".{prefix}" in key:
            return (
                f"{prefix} is of {wrapper}: save the adapter of the model inside that wrapper, or take these letters "
                "out of the names in the file"
            )
    return "give the base that the adapter was trained on"


def _require_shapes(
    path: Path, base: str, expected: dict[str, Any], tensors: dict[str, Any], embeddings: list[str]
) -> None:
    """Raises click.ClickException for a tensor of another shape than PEFT expects; `embeddings` have tokens."""
    for name, tensor in tensors.items():
        found, wanted = tuple(tensor.shape), tuple(expected.get(name, tensor).shape)
        apart = [n for n, (one, other) in enumerate(zip(found, wanted, strict=False)) if one != other]
        if apart == [_rank_place(name)]:
            raise click.ClickException(
                f"{path}: {name} has rank {found[apart[0]]}, {FILES[1]} says {wanted[apart[0]]}; "
                "the two files are of different adapters: restore the one that is not this adapter's."
            )
        if len(apart) == 1 and any(place in name for place in embeddings):
            raise click.ClickException(
                f"{path}: {name} is of {found[apart[0]]} tokens, {base} has {wanted[apart[0]]}: the adapter was "
                "trained after tokens were added. Resize the base's embeddings to as many (resize_token_embeddings), "
                "save it, and name that folder under base_model."
            )
        if found != wanted:
            raise click.ClickException(
                f"{path}: {name} is {list(found)} in the adapter and {list(wanted)} in {base}; "
                "the adapter belongs to another base model: give that one."
            )


def _rank_place(name: str) -> int | None:
    """The dimension of A or B that is the rank."""
    if ".lora_A." in name or name.endswith(".lora_embedding_A"):
        return 0
    return 1 if name.endswith((".lora_B.weight", ".lora_embedding_B")) else None
