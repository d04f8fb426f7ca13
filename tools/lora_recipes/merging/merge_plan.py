"""What a merge will do: what PEFT's adapter adds to which base weight, and where it is written."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import adapter_settings, adapters, loading, shards
from lora_recipes.models.shards import Stored
from lora_recipes.support import files

import click

_FORBIDDEN = (
    *("layer_replication", "target_parameters", "trainable_token_indices"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "ensure_weight_tying"),
)
_ELSEWHERE = "use the adapter unmerged, or PEFT's merge_and_unload"


@dataclass(frozen=True)
class Change:
    """What the adapter makes of one weight W, (rows, columns): W + scale·left·right, rows scaled to `magnitude`.

    left: (rows, rank); right: (rank, columns). A bias is a weight of one column.
    magnitude: DoRA's, one a row.
    value: the weight itself in place of the base's.
    """

    scale: float = 0.0
    left: Any = None
    right: Any = None
    magnitude: Any = None
    value: Any = None


@dataclass(frozen=True)
class Plan:
    """A merge before it is done.

    files: each output file with the base tensors in it, under their names in the merged model.
    quantized: weights that are rounded to NF4, from the dtype `quantized_from`, before the adapter is added.
    untied: whether the adapter parts two weights that are one in the base.
    """

    base: Path
    adapter: Path
    onto: str
    files: dict[str, list[Stored]]
    changes: dict[str, Change]
    quantized: frozenset[str]
    quantized_from: Any
    untied: bool

    @property
    def weights(self) -> list[Stored]:
        return [entry for entries in self.files.values() for entry in entries]

    @property
    def rewritten(self) -> list[Stored]:
        """The weights that do not stay as the base has them."""
        return [entry for entry in self.weights if entry.name in self.changes or entry.name in self.quantized]

    @property
    def dtype(self) -> Any:
        """The dtype of the merged weights."""
        return shards.dtype_of((self.rewritten or self.weights)[0])


def plan(run: RunFile, adapter: Path, onto: str) -> Plan:
    """What a merge onto the `quantized` or the `full` base will do; reads headers, no weights of the base.

    Raises click.ClickException for an adapter that adapters.require refuses or that is more than LoRA, rsLoRA or DoRA;
    for a base that is absent or damaged; and as loading.require_read does.
    """
    loading.require_read(run)
    model = adapters.require(adapter, run)
    base = shards.base_folder(run)
    stored = shards.tensors_of(base)
    quantized_from = loading.dtype_of(run)
    tied, linear = _architecture(run, quantized_from if onto == "quantized" else None)
    _require_plain(adapter)
    apart = {alias: replace(stored[source], name=alias) for alias, source in tied.items() if source in stored}
    changes = _changes(adapter, model)
    _require_stored(base, {**apart, **stored}, changes)
    if strange := sorted(linear - set(stored)):
        raise click.ClickException(f"{base}: training quantizes {strange[0]}, which no file holds; use --onto full.")
    untied = any(name in changes for pair in tied.items() for name in pair)
    if untied:
        stored = {**stored, **{name: entry for name, entry in apart.items() if name not in stored}}
    found = Plan(base, adapter, onto, _files(stored), changes, linear, quantized_from, untied)
    for entry in found.rewritten:
        if shards.dtype_of(entry) is None:
            raise click.ClickException(
                f"{base}: {entry.name} is stored as {entry.dtype}; name a base in 16 or 32 bits instead."
            )
    return found


def quantized_weights(run: RunFile) -> frozenset[str]:
    """The weights that training in 4 bit rounds."""
    return _architecture(run, loading.dtype_of(run))[1]


def _require_plain(adapter: Path) -> None:
    config = files.read_json(adapter / adapters.FILES[1])
    strange = [key for key in _FORBIDDEN if config.get(key)]
    if config.get("init_lora_weights", True) not in adapter_settings.BESIDE_THE_BASE:
        strange.insert(0, "init_lora_weights")
    if strange:
        raise click.ClickException(
            f"{adapter}: {strange[0]}: {config[strange[0]]} is not merged here, only LoRA, rsLoRA and DoRA are; "
            f"{_ELSEWHERE}."
        )


def _architecture(run: RunFile, quantized_from: Any) -> tuple[dict[str, str], frozenset[str]]:
    """The tied weights as {alias: source}, and the weights that training in 4 bit quantizes, if it did.

    Found as transformers finds them when it loads the model, here on one without memory.
    """
    model = loading.base_without_weights(run)
    tied = dict(model.all_tied_weights_keys)
    if quantized_from is None:
        return tied, frozenset()
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or [])
    replace_with_bnb_linear(model, kept, loading.four_bit(quantized_from))
    linear = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    return tied, frozenset(f"{name}.weight" for name in linear)


def _changes(adapter: Path, model: Any) -> dict[str, Change]:
    """The changes by the base's weight names, out of the modules that PEFT has put into the model."""
    from peft.tuners.lora import LoraLayer

    changes: dict[str, Change] = {}
    for name, parameter in model.get_base_model().named_parameters():
        if adapters.is_given(parameter) and ".lora_" not in name:  # saved whole: a module, a bias, LoRA's embedding
            own = name.replace(f".modules_to_save.{adapters.NAME}.", ".").replace(".base_layer.", ".")
            changes[own] = Change(value=parameter.detach())
    for path, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            for key, change in _additions(adapter, path, module).items():
                own = f"{path}.{key}"
                changes[own] = replace(change, value=changes.get(own, change).value)
    return changes


def _additions(adapter: Path, path: str, layer: Any) -> dict[str, Change]:
    """What LoRA adds to the weight and the bias of a layer. Raises for a layer that is not folded row by row."""
    import torch
    from peft.tuners.lora import Embedding, Linear

    name, kind = adapters.NAME, type(layer)
    if kind is Embedding:
        left, right, turned = layer.lora_embedding_B[name].detach(), layer.lora_embedding_A[name].detach(), True
    elif kind is Linear:
        left, right = layer.lora_B[name].weight.detach(), layer.lora_A[name].weight.detach()
        turned = layer.fan_in_fan_out  # PEFT's answer for this layer, whatever the adapter's settings say
    else:
        raise click.ClickException(f"{adapter}: LoRA on {path} ({kind.__name__}) is not merged; {_ELSEWHERE}.")
    dora = name in layer.lora_magnitude_vector
    if name in layer.lora_variant and (turned or not dora):
        variant = type(layer.lora_variant[name]).__name__
        raise click.ClickException(f"{adapter}: {variant} on {path} is not merged here; {_ELSEWHERE}.")
    if turned:
        left, right = right.T, left.T
    magnitude = layer.lora_magnitude_vector[name].weight.detach() if dora else None
    additions = {"weight": Change(layer.scaling[name], left, right, magnitude)}
    if layer.lora_bias[name]:
        bias = layer.lora_B[name].bias.detach()
        additions["bias"] = Change(layer.scaling[name], bias[:, None], torch.ones(1, 1))
    return additions


def _require_stored(base: Path, stored: dict[str, Stored], changes: dict[str, Change]) -> None:
    """Raises click.ClickException when a weight to be changed lies in no file of the base under its name and shape."""
    for name, change in changes.items():
        shape = [len(change.left), change.right.shape[1]] if change.value is None else list(change.value.shape)
        entry = stored.get(name)
        if entry is None or (entry.shape[0], entry.count) != (shape[0], math.prod(shape)):
            raise click.ClickException(
                f"{base}: no file holds {name} {shape} as it is in the loaded model; {_ELSEWHERE}."
            )


def _files(stored: dict[str, Stored]) -> dict[str, list[Stored]]:
    """The base's shards under the names of the merged ones."""
    sources = sorted({entry.file for entry in stored.values()})
    held = {source: [entry for entry in stored.values() if entry.file == source] for source in sources}
    if len(sources) == 1:
        return {"model.safetensors": held[sources[0]]}
    return {f"model-{n:05}-of-{len(sources):05}.safetensors": held[file] for n, file in enumerate(sources, 1)}
