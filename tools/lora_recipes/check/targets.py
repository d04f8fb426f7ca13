"""Target modules: what each name and pattern of the LoRA keys matches, and how many parameters are trained."""

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.models import lora
from lora_recipes.models.lora import Matched

_ADAPTERS = ("lora", "qlora")


def check(checked: CheckedRun) -> None:
    """Each name under the LoRA keys must match something: PEFT is content when one of them does."""
    if checked.config.get("adapter") not in _ADAPTERS or checked.meta_model is None:
        return
    ranked = {name: int(checked.number(name)) for name in ("lora_r", "lora_alpha")}
    # Without a rank, which others report, what matches is the same.
    found = lora.matched({**checked.config, **{name: value or 1 for name, value in ranked.items()}}, checked.meta_model)
    if found.trained and ranked["lora_r"]:
        _report(checked, found)
    for key, names in found.unmatched.items():
        _missing(checked, found, key, names)
    if not any(checked.config.get(key) for key in lora.TARGETS):
        checked.error(
            "target-modules",
            "lora_target_modules",
            "no target modules are named",
            "names of layers of the base model",
            f"write some of {', '.join(lora.names_of(checked.meta_model))}",
        )
    elif found.refused and not found.unmatched:
        checked.error(
            "target-modules",
            "lora_target_modules",
            f"PEFT refuses these LoRA keys: {' '.join(found.refused.split())[:300]}",
            "settings that PEFT makes an adapter of",
            "change what the sentence names",
        )


def _report(checked: CheckedRun, found: Matched) -> None:
    by_name = {name: {"modules": one[0], "parameters": one[1]} for name, one in found.by_name.items()}
    width = max((len(name) for name in by_name), default=0)
    lines = [
        f"{name:<{width}}  {one['modules']:>4} modules  {one['parameters']:>12,} parameters"
        for name, one in by_name.items()
    ]
    value = {"by_name": by_name, "trainable": found.trained, "total": found.total}
    checked.report.fact(
        "target modules", value, *lines, f"{_share(found, 'are trained')} ({found.trained / found.total:.2%})"
    )


def _share(found: Matched, verb: str) -> str:
    return f"{found.trained:,} of {found.total:,} parameters {verb}"


def _missing(checked: CheckedRun, found: Matched, key: str, names: list[str]) -> None:
    rest = f"; {_share(found, 'would be trained')}, and nobody would say so" if found.trained else ""
    checked.error(
        "target-modules",
        key,
        f"{_listed(names)} {'matches' if len(names) == 1 else 'match'} no layer of "
        f"{type(checked.meta_model).__name__}{rest}",
        f"names that it has: {', '.join(lora.names_of(checked.meta_model))}",
        "replace or delete " + ("the name" if len(names) == 1 else "the names"),
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
