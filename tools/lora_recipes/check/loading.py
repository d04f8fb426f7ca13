"""What ends a run when its base model is loaded: attention that the model lacks, kernels that do not fit it."""

from typing import Any

from lora_recipes.check.checked_run import CheckedRun

_ASKED = ("sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""What a class of transformers says whether it has; eager all have, and others are Axolotl's own."""
_KERNELS = {
    "lora_qkv_kernel": "q_proj, k_proj and v_proj, each with an adapter",
    "lora_o_kernel": "o_proj with an adapter",
    "lora_mlp_kernel": "gate_proj, up_proj and down_proj, each with an adapter",
    "lora_embedding_kernel": "embed_tokens with an adapter",
}
"""Kernel -> the layers that it takes over, as axolotl/monkeypatch/lora_kernels.py looks for them."""


def check(checked: CheckedRun) -> None:
    """attn_implementation, asked of the model's class as transformers does it when the weights are loaded."""
    wanted, model = checked.config.get("attn_implementation"), checked.meta_model
    if wanted not in _ASKED or model is None:
        return
    try:
        model.get_correct_attn_implementation(wanted, is_init_check=True)
    except ImportError:
        pass  # this machine lacks its package, which says nothing of the model
    except ValueError as error:
        checked.error(
            "attention",
            "attn_implementation",
            f"{wanted}: {str(error).partition('. ')[0]}; the run ends when the model is loaded",
            f"an attention that {type(model).__name__} has",
            f"write attn_implementation: {'sdpa' if model._supports_sdpa else 'eager'}",
        )


def report(checked: CheckedRun, load: dict[str, Any]) -> None:
    """What axolotl_load.ask has found: an error that ends the run, or kernels that are named and replace no layer."""
    if load.get("error") and not load["keys"]:
        checked.error(
            "axolotl-refuses",
            "base_model",
            f"{load['error']}; Axolotl ends before the model is loaded",
            "a base model that goes with the rest of the file",
            "change what the sentence names, or take another base model",
        )
    elif load.get("error"):
        _kernels(checked, load["error"], [key for key in load["keys"] if checked.config.get(key)])
    for key, layers in load.get("layers", {}).items():
        if checked.config.get(key) is True and not layers:
            checked.note(
                "kernels",
                key,
                "true, and it acts on no layer of this run: Axolotl trains without it",
                f"layers that it takes over: {_KERNELS[key]}",
                f"write {key}: false, or adapt those layers",
            )


def _kernels(checked: CheckedRun, error: str, named: list[str]) -> None:
    whose = "" if named else "; Axolotl turns them on by itself in a file that names no kernel"
    off = " and ".join(f"{key}: false" for key in named)
    checked.error(
        "kernels",
        named[0] if named else "adapter",
        f"{error}: the run ends with this when the model is loaded, for Axolotl's fused LoRA kernels "
        f"do not know its layers{whose}",
        "no fused kernels for this model",
        f"write {off}" if named else "write lora_qkv_kernel: false; once one kernel is named, Axolotl turns on none",
    )
