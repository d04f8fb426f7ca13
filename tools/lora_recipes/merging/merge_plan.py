"""What a merge will do: which adapter tensors change which base weight, and where it is written."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import adapters, loading, shards
from lora_recipes.models.shards import Stored

import click

_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"

_PLAIN = {"peft_type": ("LORA",), "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva")}
"""Other initialisations (PiSSA, OLoRA, LoftQ, …) change the base weights too: a plain sum is wrong for them."""
_FORBIDDEN = (
    *("fan_in_fan_out", "layer_replication", "target_parameters", "trainable_token_indices"),
    *("alora_invocation_tokens", "use_qalora", "use_bdlora", "ensure_weight_tying"),
)


@dataclass(frozen=True)
class Change:
    """What the adapter holds for one weight: A and B, DoRA's magnitudes, the weight itself in place of the base's."""

    scale: float = 0.0
    lora_a: Stored | None = None
    lora_b: Stored | None = None
    magnitude: Stored | None = None
    value: Stored | None = None


@dataclass(frozen=True)
class Plan:
    """A merge before it is done.

    files: each output file with the base tensors in it, under their names in the merged model.
    unmatched: adapter keys for which the base has no weight.
    quantized: weights that are rounded to NF4, from the dtype `quantized_from`, before the adapter is added.
    untied: whether the adapter parts two weights that are one in the base.
    """

    base: Path
    adapter: Path
    onto: str
    files: dict[str, list[Stored]]
    changes: dict[str, Change]
    unmatched: list[str]
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

    def require_matched(self) -> None:
        if self.unmatched:
            raise click.ClickException(
                f"{self.adapter}: {len(self.unmatched)} of its keys match no weight of {self.base}, the first is "
                f"{self.unmatched[0]}; give the base that the adapter was trained on."
            )


def plan(run: RunFile, adapter: Path, onto: str) -> Plan:
    """What a merge onto the `quantized` or the `full` base will do; reads headers, no weights of the base.

    Raises click.ClickException for an adapter that adapters.require refuses, that is more than
    LoRA, rsLoRA or DoRA, or whose shapes or ranks do not fit; for a base that is absent or damaged; and as
    models.require_read does.
    """
    loading.require_read(run)
    config = adapters.require(adapter, run)
    _require_plain(adapter, config)
    base = shards.base_folder(run)
    stored = shards.tensors_of(base)
    quantized_from = loading.dtype_of(run)
    tied, linear = _architecture(run, base, quantized_from if onto == "quantized" else None)
    apart = {alias: replace(stored[source], name=alias) for alias, source in tied.items() if source in stored}
    changes, unmatched = _match(adapter, config, {**apart, **stored})
    if strange := sorted(linear - set(stored)):
        raise click.ClickException(f"{base}: training quantizes {strange[0]}, which no file holds; use --onto full.")
    untied = any(name in changes for pair in tied.items() for name in pair)
    if untied:
        stored = {**stored, **{name: entry for name, entry in apart.items() if name not in stored}}
    found = Plan(base, adapter, onto, _files(stored), changes, unmatched, linear, quantized_from, untied)
    for entry in found.rewritten:
        if shards.dtype_of(entry) is None:
            raise click.ClickException(
                f"{base}: {entry.name} is stored as {entry.dtype}; name a base in 16 or 32 bits instead."
            )
    return found


def quantized_weights(run: RunFile, base: Path) -> frozenset[str]:
    """The weights that training in 4 bit rounds."""
    return _architecture(run, base, loading.dtype_of(run))[1]


def _require_plain(adapter: Path, config: dict[str, Any]) -> None:
    strange = [key for key, allowed in _PLAIN.items() if config.get(key, allowed[0]) not in allowed]
    strange += [key for key in _FORBIDDEN if config.get(key)]
    if strange:
        key = strange[0]
        raise click.ClickException(
            f"{adapter}: {key}: {config[key]} is not merged here, only LoRA, rsLoRA and DoRA are; "
            "use the adapter unmerged, or PEFT's merge_and_unload."
        )


def _architecture(run: RunFile, base: Path, quantized_from: Any) -> tuple[dict[str, str], frozenset[str]]:
    """The tied weights as {alias: source}, and the weights that training in 4 bit quantizes, if it did.

    Found as transformers finds them when it loads the model, here on one without memory.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200]
        raise run.error("base_model", f"{base} is no causal language model known here. ({words})") from None
    tied = dict(model.all_tied_weights_keys)
    if quantized_from is None:
        return tied, frozenset()
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert

    kept = get_keys_to_not_convert(model) + list(model._keep_in_fp32_modules or [])
    replace_with_bnb_linear(model, kept, loading.four_bit(quantized_from))
    linear = [name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    return tied, frozenset(f"{name}.weight" for name in linear)


def _match(adapter: Path, config: dict[str, Any], base: dict[str, Stored]) -> tuple[dict[str, Change], list[str]]:
    """The changes by weight name, and the keys of the adapter that belong to no weight."""
    tensors = shards.tensors_in(adapter / adapters.FILES[0])
    changes: dict[str, Change] = {}
    used: set[str] = set()
    for key, tensor in tensors.items():
        module = key.removesuffix(_A)
        # A whole weight is one of modules_to_save, or the base's own below LoRA on an embedding.
        name = key.removeprefix(_PREFIX).replace(".base_layer.", ".")
        weight = module.removeprefix(_PREFIX) + ".weight" if key.endswith(_A) else name
        if weight not in base:
            continue
        change = changes.get(weight, Change())
        if key.endswith(_A):
            parts = {"lora_b": tensors.get(module + _B), "magnitude": tensors.get(module + _MAGNITUDE)}
            change = replace(change, scale=_scale(adapter, config, weight, tensor), lora_a=tensor, **parts)
        else:
            change = replace(change, value=tensor)
        _require_fit(adapter, config, base[weight], change)
        changes[weight] = change
        used |= {part.name for part in (change.value, change.lora_a, change.lora_b, change.magnitude) if part}
    return changes, [key for key in tensors if key not in used]


def _scale(adapter: Path, config: dict[str, Any], weight: str, lora_a: Stored) -> float:
    """alpha/r or alpha/√r of one module, by PEFT's patterns. Raises when A has another rank."""
    module = weight.removesuffix(".weight")
    rank = _by_pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    if lora_a.shape[0] != rank:
        raise click.ClickException(
            f"{adapter}: {lora_a.name} has rank {lora_a.shape[0]}, adapter_config.json says {rank}; "
            "the two files are not of one adapter: train again or restore it."
        )
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _by_pattern(patterns: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    if not patterns:
        return otherwise
    from peft.utils.other import get_pattern_key  # a second, and only some adapters have patterns

    return patterns.get(get_pattern_key(list(patterns), module), otherwise)


def _require_fit(adapter: Path, config: dict[str, Any], base: Stored, change: Change) -> None:
    """The shapes of the adapter's tensors are those that the base weight needs."""
    shape = change.value.shape if change.value else base.shape
    if change.lora_a and shape == base.shape:
        fits = change.lora_b and change.lora_a.shape[0] == change.lora_b.shape[-1]
        shape = (change.lora_b.shape[0], change.lora_a.shape[1]) if change.lora_b and fits else ()
    if shape != base.shape:
        raise click.ClickException(
            f"{adapter}: its {base.name} is of shape {list(shape)}, the base's of {list(base.shape)}; "
            "give the base that the adapter was trained on."
        )
    if change.lora_a and config.get("use_dora") and (not change.magnitude or change.magnitude.shape != shape[:1]):
        raise click.ClickException(
            f"{adapter}: no DoRA magnitudes for {base.name}; the adapter is damaged: train again."
        )


def _files(stored: dict[str, Stored]) -> dict[str, list[Stored]]:
    """The base's shards under the names of the merged ones."""
    sources = sorted({entry.file for entry in stored.values()})
    held = {source: [entry for entry in stored.values() if entry.file == source] for source in sources}
    if len(sources) == 1:
        return {"model.safetensors": held[sources[0]]}
    return {f"model-{n:05}-of-{len(sources):05}.safetensors": held[file] for n, file in enumerate(sources, 1)}
