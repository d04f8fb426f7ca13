"""A run file's LoRA keys as PEFT takes them, and what they match in its base model: PEFT's answers, without weights."""

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import LoraConfig

_PASSED_ON = {
    "lora_exclude_modules": "exclude_modules",
    "lora_fan_in_fan_out": "fan_in_fan_out",
    "lora_modules_to_save": "modules_to_save",
    "lora_rank_pattern": "rank_pattern",
    "lora_alpha_pattern": "alpha_pattern",
    "peft_layers_to_transform": "layers_to_transform",
    "peft_layers_pattern": "layers_pattern",
    "peft_layer_replication": "layer_replication",
    "peft_trainable_token_indices": "trainable_token_indices",
    "peft_ensure_weight_tying": "ensure_weight_tying",
    "peft_use_dora": "use_dora",
    "peft_use_rslora": "use_rslora",
}
"""Axolotl's keys and PEFT's names for them (axolotl/loaders/adapter.py), of those that are passed on as they are."""

TARGETS = ("lora_target_modules", "lora_target_linear", "lora_target_parameters")
"""The keys that say what is adapted."""

LINEAR = "all linear layers"
"""What lora_target_linear stands for, as a name among those of lora_target_modules."""


@dataclass(frozen=True)
class Matched:
    """What LoRA keys match in a model.

    by_name: for each name its modules and its trained parameters.
    unmatched: for each key the names, patterns or layer numbers in it that match nothing.
    trained, total: parameters of the whole model with its adapter; 0 where PEFT makes none.
    refused: why PEFT makes none.
    """

    by_name: dict[str, tuple[int, int]]
    unmatched: dict[str, list[str]]
    trained: int
    total: int
    refused: str


def lora_config(config: dict[str, Any], model: Any) -> "LoraConfig":
    """PEFT's settings for a run file's keys, with the meaning that they have in Axolotl 0.19.

    Without the initialisation: what it changes is no matter of modules and shapes. Raises TypeError and ValueError
    for values that PEFT refuses.
    """
    from peft import LoraConfig

    targets = config.get("lora_target_modules") or []
    if config.get("lora_target_linear"):
        targets = sorted({*_listed(targets), *_linear_names(model)})
    return LoraConfig(
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout") or 0.0,
        target_modules=targets,
        target_parameters=_listed(config.get("lora_target_parameters")),
        bias="none",
        task_type="CAUSAL_LM",
        **{name: config[key] for key, name in _PASSED_ON.items() if config.get(key)},
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value] if value else []


def _linear_names(model: Any) -> set[str]:
    """The last parts of the linear layers' names, without the head's, as Axolotl finds them."""
    head = model.get_output_embeddings()
    linear = [name for name, one in model.named_modules() if "Linear" in type(one).__name__ and one is not head]
    return {name.rpartition(".")[2] for name in linear}


def names_of(model: Any) -> list[str]:
    """The last parts of the names of the layers that LoRA can adapt, in the model's order, without the head's."""
    from peft import LoraConfig

    adapted = _attached(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in adapted.base_model.targeted_module_names))


def matched(config: dict[str, Any], model: Any) -> Matched:
    """Match and count a run file's LoRA keys in a model on torch's meta device, which stays as it is."""
    try:
        wanted = replace(lora_config(config, model), lora_dropout=0.0)  # PEFT has none for experts
    except (KeyError, TypeError, ValueError) as error:
        return Matched({}, {}, 0, 0, f"{type(error).__name__}: {error}")
    by_name: dict[str, tuple[int, int]] = {}
    unmatched: dict[str, list[str]] = {}
    for key, name, targets in _asked(config, model):
        by_name[name] = _alone(model, wanted, **targets)
        in_any_layer = {"layers_to_transform": None, "layers_pattern": None, **targets}
        if not by_name[name][0] and not _alone(model, wanted, **in_any_layer)[0]:
            unmatched.setdefault(key, []).append(name)
    try:
        adapted = _attached(model, wanted)
    except (TypeError, ValueError) as error:
        return Matched(by_name, unmatched | _layers(wanted, model), 0, 0, str(error))
    unmatched |= _layers(wanted, model) | _unused(wanted, adapted)
    trained, total = adapted.get_nb_trainable_parameters()
    return Matched(by_name, unmatched, trained, total, "")


def _asked(config: dict[str, Any], model: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """For each name its key, and PEFT's settings for it alone."""
    names = config.get("lora_target_modules")
    each = [(names, names)] if isinstance(names, str) else [(str(name), [name]) for name in _listed(names)]
    asked = [("lora_target_modules", name, _targets(modules, [])) for name, modules in each]
    if config.get("lora_target_linear"):
        asked.append(("lora_target_linear", LINEAR, _targets(sorted(_linear_names(model)), [])))
    for name in _listed(config.get("lora_target_parameters")):
        asked.append(("lora_target_parameters", str(name), _targets([], [name])))
    return asked


def _targets(modules: str | list[str], parameters: list[str]) -> dict[str, Any]:
    return {"target_modules": modules, "target_parameters": parameters}


def _attached(model: Any, config: "LoraConfig") -> Any:
    """PEFT's model around a copy of one without weights. Raises ValueError when nothing matches."""
    import warnings

    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own words on what is reported here
        return get_peft_model(copy.deepcopy(model), copy.deepcopy(config), low_cpu_mem_usage=True)


def _alone(model: Any, config: "LoraConfig", **targets: Any) -> tuple[int, int]:
    """The modules that some targets match by themselves, and the parameters that LoRA trains for them."""
    alone = replace(config, modules_to_save=None, trainable_token_indices=None, **targets)
    try:
        adapted = _attached(model, alone)
    except (TypeError, ValueError):
        return 0, 0
    tuner = adapted.base_model
    found = len(tuner.targeted_module_names) + len(tuner.targeted_parameter_names)
    return found, adapted.get_nb_trainable_parameters()[0]


def _layers(config: "LoraConfig", model: Any) -> dict[str, list[str]]:
    """Layer numbers without a layer, or the pattern that finds none of them."""
    from peft.tuners.tuners_utils import check_target_module_exists

    names = [name for name, _ in model.named_modules()]
    numbers = {str(n): replace(config, layers_to_transform=[n]) for n in _listed(config.layers_to_transform)}
    absent = [n for n, one in numbers.items() if not any(check_target_module_exists(one, name) for name in names)]
    if absent and config.layers_pattern and len(absent) == len(numbers):
        return {"peft_layers_pattern": [str(one) for one in _listed(config.layers_pattern)]}
    return {"peft_layers_to_transform": absent} if absent else {}


def _unused(config: "LoraConfig", adapted: Any) -> dict[str, list[str]]:
    """Patterns that are of no adapted layer, and modules to save that are not there."""
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import get_pattern_key

    names = [*adapted.base_model.targeted_module_names, *adapted.base_model.targeted_parameter_names]
    saved = [name for name, module in adapted.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    found = {
        key: [one for one in patterns or {} if all(get_pattern_key([one], name) != one for name in names)]
        for key, patterns in (("lora_rank_pattern", config.rank_pattern), ("lora_alpha_pattern", config.alpha_pattern))
    }
    found["lora_modules_to_save"] = [
        one for one in config.modules_to_save or [] if not any(name.endswith(one) for name in saved)
    ]
    return {key: absent for key, absent in found.items() if absent}
