"""The model that is trained: a run file's base model with a new adapter, its layers compiled on request."""

from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import loading, lora
from lora_recipes.support import processes

import torch


def attach_lora(run: RunFile) -> Any:
    """The base model with a new adapter, whose weights depend on the run file's seed alone.

    Raises click.ClickException when a name under lora_target_modules matches no module.
    """
    from peft import get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    config, dtype = run.config, loading.dtype_of(run)
    _require_targets(run)
    model = loading.load_base(run)
    model.config.use_cache = False
    if run.four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=run.gradient_checkpointing)
        _back_to(model, dtype)
    elif run.gradient_checkpointing:
        model.enable_input_require_grads()
    set_seed(run.seed)
    return get_peft_model(model, lora.lora_config(config, model))


def compile_layers(run: RunFile, model: Any) -> None:
    """Compile each decoder layer in place where the run file has torch_compile; the layers share the compiled code.

    Raises click.ClickException without a C++ compiler, which PyTorch needs for it on a CPU.
    """
    if not run.config.get("torch_compile"):
        return
    if processes.on_cpu():
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
        except exc.InvalidCxxCompiler:
            raise run.error("torch_compile", "needs a C++ compiler; install g++ or delete the key.") from None
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    for layer in max(lists, key=len):
        layer.compile(dynamic=True)


def _back_to(model: Any, dtype: Any) -> None:
    """prepare_model_for_kbit_training leaves norms and embeddings in float32; Axolotl trains them in dtype."""
    for name, module in model.named_modules():
        if "norm" in name or isinstance(module, torch.nn.Embedding):
            module.to(dtype)
    model.get_output_embeddings().to(dtype)


def _require_targets(run: RunFile) -> None:
    base = loading.base_without_weights(run)
    found = lora.matched(run.config, base)
    for key, names in found.unmatched.items():
        value = run.config[key]
        place = f"{key}.{value.index(names[0])}" if isinstance(value, list) else key
        there = ", ".join(lora.names_of(base))
        raise run.error(place, f"no module of {run.base_model} is named {names[0]}; it has {there}.")
    if found.refused:
        raise run.error("lora_target_modules", f"PEFT refuses it: {' '.join(found.refused.split())[:300]}")
