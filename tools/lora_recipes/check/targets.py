"""Target modules: which layers each name matches, and how many parameters are trained, exactly."""

import re
from typing import Any

from lora_recipes.check.subject import Subject

_ADAPTERS = ("lora", "qlora")


def check(subject: Subject) -> None:
    """Each name under lora_target_modules must match a layer: PEFT is content when one of them does."""
    config = subject.config
    if config.get("adapter") not in _ADAPTERS:
        return
    model = subject.meta_model
    if model is None:
        return
    layers = _layers(model)
    names, rank = config.get("lora_target_modules"), int(subject.number("lora_r"))
    found = {name: _matched(name, layers) for name in ([names] if isinstance(names, str) else names or [])}
    if config.get("lora_target_linear"):
        found["all linear layers"] = _linear(model, layers)
    base = sum(parameter.numel() for parameter in model.parameters())
    magnitudes = bool(config.get("peft_use_dora"))
    added = {name: sum(_parameters(layers[one], rank, magnitudes) for one in hits) for name, hits in found.items()}
    once = {one for hits in found.values() for one in hits}
    trained = sum(_parameters(layers[one], rank, magnitudes) for one in once)
    kept = _modules_to_save(model, config.get("lora_modules_to_save"))
    total = base + trained + kept
    _report(subject, found, added, trained + kept, total)
    _missing(subject, model, layers, found, trained + kept, total)


def _layers(model: Any) -> dict[str, Any]:
    """Name -> layer, of the layers that LoRA can adapt."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kinds = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv2d, Conv1D)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _linear(model: Any, layers: dict[str, Any]) -> list[str]:
    import torch

    head = model.get_output_embeddings()
    return [name for name, layer in layers.items() if isinstance(layer, torch.nn.Linear) and layer is not head]


def _matched(name: Any, layers: dict[str, Any]) -> list[str]:
    """As PEFT matches a list's entries: the whole name or its end."""
    exact = [one for one in layers if one == name or one.endswith(f".{name}")]
    if exact or not isinstance(name, str) or not re.search(r"[\\*+()|^$\[]", name):
        return exact
    try:
        return [one for one in layers if re.fullmatch(name, one)]
    except re.error:
        return []


def _parameters(layer: Any, rank: int, magnitudes: bool) -> int:
    """r x (in + out) for A and B (Hu et al. 2021, section 4.1); DoRA adds one magnitude an output."""
    weight = layer.weight.shape
    inside, outside = weight[0], weight[1:].numel()
    if layer.__class__.__name__ == "Conv1D":
        inside, outside = outside, inside
    return int(rank * (inside + outside) + (inside if magnitudes else 0))


def _modules_to_save(model: Any, names: Any) -> int:
    """PEFT trains whole copies of these."""
    chosen = [module for name, module in model.named_modules() if name.split(".")[-1] in (names or [])]
    return sum(parameter.numel() for module in chosen for parameter in module.parameters())


def _report(subject: Subject, found: dict[Any, list[str]], added: dict[Any, int], trained: int, total: int) -> None:
    by_name = {str(name): {"modules": len(hits), "parameters": added[name]} for name, hits in found.items()}
    width = max((len(name) for name in by_name), default=0)
    lines = [
        f"{name:<{width}}  {one['modules']:>4} modules  {one['parameters']:>12,} parameters"
        for name, one in by_name.items()
    ]
    sum_ = f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})"
    value = {"by_name": by_name, "trainable": trained, "total": total}
    subject.report.fact("target modules", value, *lines, sum_)


def _missing(
    subject: Subject, model: Any, layers: dict[str, Any], found: dict[Any, list[str]], trained: int, total: int
) -> None:
    absent = [str(name) for name, hits in found.items() if not hits]
    if not found:
        subject.error(
            "target-modules",
            "lora_target_modules",
            "no target modules are named",
            "names of layers of the base model",
            f"write some of {', '.join(_ends(model, layers))}",
        )
    if absent:
        rest = f"; {trained:,} of {total:,} parameters would be trained, and nobody would say so" if trained else ""
        subject.error(
            "target-modules",
            "lora_target_modules",
            f"{_listed(absent)} {'matches' if len(absent) == 1 else 'match'} no layer of {type(model).__name__}{rest}",
            f"names that it has: {', '.join(_ends(model, layers))}",
            "replace or delete " + ("the name" if len(absent) == 1 else "the names"),
        )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ends(model: Any, layers: dict[str, Any]) -> list[str]:
    """The last parts of the linear layers' names, in the model's order."""
    return list(dict.fromkeys(re.sub(r".*\.", "", name) for name in _linear(model, layers)))
