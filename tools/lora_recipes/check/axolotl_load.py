"""What stops Axolotl between its validation and the first step, asked of its own code without weights.

It runs in the worker process, where Axolotl is imported.
"""

from collections import Counter
from typing import Any

_ATTENTION = ("lora_qkv_kernel", "lora_o_kernel")


def ask(cfg: Any, model: str) -> dict[str, Any]:
    """Load a validated run's base model as far as it goes without weights.

    `model` is a folder or a name on the Hub, taken for base_model. The answer is empty where its configuration cannot
    be loaded. Otherwise it has the words of an `error` and the kernel `keys` that led to it, none where the
    configuration itself is refused; or `layers`, kernel key -> number of modules that the kernel takes over.
    """
    from axolotl.utils.config import normalize_config
    from transformers import AutoConfig

    if cfg.trust_remote_code:  # nobody's code is run here; no kernel is with it, Axolotl's validation sees to that
        return {}
    try:
        AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception:  # of a dozen types; the check, which needs it too, says why
        return {}
    cfg.base_model = model
    cfg.pop("base_model_config", None)
    keys: list[str] = []
    try:
        normalize_config(cfg)
        keys = [key for key in _ATTENTION if cfg[key]]
        if keys:
            _rewrite_attention(cfg)
        keys = [key for key in (*_ATTENTION, "lora_mlp_kernel") if cfg[key]]
        return {"layers": _layers(cfg) if keys else {}}
    except Exception as error:
        return {"keys": keys, "error": words(error)}


def words(error: Exception) -> str:
    """What an error says, on one line, with its type where the words alone do not tell it."""
    text = " ".join(str(error).split())[:600]
    plain = text and isinstance(error, (ValueError, NotImplementedError, AssertionError))
    return text if plain else f"{type(error).__name__}: {text}".removesuffix(": ")


def _rewrite_attention(cfg: Any) -> None:
    """Axolotl's rewriting of the attention's source; the class is as before when it is done."""
    from axolotl.monkeypatch import lora_kernels

    attention = lora_kernels.get_attention_cls_from_config(cfg)
    forward = attention.forward
    try:
        lora_kernels.patch_self_attn_lora(cfg)
    finally:
        attention.forward = forward
        if "_original_forward" in vars(attention):  # Axolotl's mark: with it the next call would do nothing
            del attention._original_forward


def _layers(cfg: Any) -> dict[str, int]:
    """Axolotl's kernels put into the model with its adapter, on torch's meta device."""
    from axolotl.kernels import lora
    from axolotl.monkeypatch import lora_kernels

    model = _peft_model(cfg)
    if model is None:
        return {}
    lora_kernels.apply_lora_kernel_patches(model, cfg)
    methods = Counter(
        getattr(vars(module).get(name), "__func__", None)
        for module in model.modules()
        for name in ("apply_qkv", "apply_o", "forward")
    )
    return {
        "lora_qkv_kernel": methods[lora.apply_lora_qkv] + methods[lora.apply_lora_qk],
        "lora_o_kernel": methods[lora.apply_lora_o],
        "lora_mlp_kernel": sum(methods[one] for one in lora_kernels.APPLY_FN_MAPPING.values()),
        "lora_embedding_kernel": methods[lora.apply_lora_embedding],
    }


def _peft_model(cfg: Any) -> Any:
    """None for a kind of model or target modules that the check of target modules speaks of."""
    import torch
    from axolotl.loaders.adapter import load_lora
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(cfg.base_model), trust_remote_code=False
            )
            return get_peft_model(model, load_lora(model, cfg, config_only=True)[1])
    except Exception:
        return None
