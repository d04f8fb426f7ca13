"""The model that is trained: the base of a run file with a fresh adapter, its layers compiled where it says so."""

import re
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.models import loading
from lora_recipes.support import processes

import torch


def adapted(run: RunFile) -> Any:
    """The base model with a fresh adapter, seeded: the same run file gives the same adapter.

    Raises click.ClickException when a name under lora_target_modules matches no module.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import set_seed

    config, dtype = run.config, loading.dtype_of(run)
    model = loading.load_base(run)
    model.config.use_cache = False
    if run.four_bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=run.gradient_checkpointing)
        _back_to(model, dtype)
    elif run.gradient_checkpointing:
        model.enable_input_require_grads()
    targets: Any = "all-linear" if config.get("lora_target_linear") else config["lora_target_modules"]
    if isinstance(targets, list):
        _require_targets(run, model, targets)
    lora = LoraConfig(
        r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config.get("lora_dropout") or 0.0,
        target_modules=targets,
        use_dora=bool(config.get("peft_use_dora")),
        use_rslora=bool(config.get("peft_use_rslora")),
        bias="none",
        task_type="CAUSAL_LM",
    )
    set_seed(run.seed)
    return get_peft_model(model, lora)


def compile_layers(run: RunFile, model: Any) -> None:
    """Compile each decoder layer in place, where the run file says torch_compile; all share what is compiled.

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


def _require_targets(run: RunFile, model: Any, targets: list[str]) -> None:
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for index, target in enumerate(targets):
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            there = sorted({re.sub(r".*\.", "", name) for name in linear} - {"lm_head"})
            raise run.error(
                f"lora_target_modules.{index}",
                f"no module of {run.base_model} is named {target}; it has {', '.join(there)}.",
            )
