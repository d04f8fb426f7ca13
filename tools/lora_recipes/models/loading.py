"""Tokenizer, base model and adapter of a run file, loaded the way Axolotl 0.19 loads them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.support import files, libraries, processes

import click

_UNREAD = (
    *("revision_of_model", "model_revision", "base_model_config", "tokenizer_config", "tokenizer_use_mistral_common"),
    *("overrides_of_model_config", "overrides_of_model_kwargs", "added_tokens_overrides", "tokens"),
    *("load_in_8bit", "gptq", "model_quantization_config"),
)
"""Keys with which Axolotl loads another model or tokenizer than is loaded here."""


def require_read(run: RunFile) -> None:
    """Raises click.ClickException for a key that makes Axolotl train another model than is loaded here."""
    for key in _UNREAD:
        if run.config.get(key) not in (None, False, [], {}, run.base_model):
            raise run.error(
                key,
                "Axolotl loads another model or tokenizer for it, these tools do not; delete the key to use "
                f"{run.base_model} as it is, or name a folder with the model and the tokenizer that are "
                "meant under base_model.",
            )


def load_tokenizer(run: RunFile) -> Any:
    """The base model's tokenizer with the run file's special tokens and chat template.

    Raises click.ClickException for a token or a template that is not to be had, and as require_read does.
    """
    from transformers import AutoTokenizer

    require_read(run)
    with _errors_in_a_sentence(run):
        tokenizer = AutoTokenizer.from_pretrained(run.model(), trust_remote_code=False)
    for name, token in run.special_tokens.items():
        if name != "additional_special_tokens" and token not in tokenizer.get_vocab():
            raise run.error(
                f"special_tokens.{name}",
                f"{token!r} is not a token of {run.base_model}; take one that it has.",
            )
        setattr(tokenizer, name, token)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    _set_chat_template(run, tokenizer)
    return tokenizer


def _set_chat_template(run: RunFile, tokenizer: Any) -> None:
    """The run file's chat template, text or file, which is then saved beside the adapter; else the model's own."""
    name, text = run.config.get("chat_template"), run.config.get("chat_template_jinja")
    if text and name in (None, "jinja"):  # Axolotl, too, takes a text without a name for jinja
        path = run.path(text)
        tokenizer.chat_template = files.read_text(path) if os.path.isfile(path) else text
    elif name and not (name == "tokenizer_default" and tokenizer.chat_template and not text):
        reasons = {
            "jinja": "chat_template_jinja is missing",
            "tokenizer_default": "this takes the base model's own template, and either it has none or the file has one",
        }
        raise run.error(
            "chat_template",
            f"{reasons.get(name, f'{name} is a template inside Axolotl')}; spell the template out with "
            "chat_template: jinja and chat_template_jinja, or delete the key.",
        )


def dtype_of(run: RunFile) -> Any:
    """torch's dtype of the base weights."""
    import torch

    return getattr(torch, run.dtype_name)


def load_base(run: RunFile, dtype: Any = None, quantized: bool | None = None) -> Any:
    """The base model in the run file's dtype, on this process's device; in 4 bit where the run file says so.

    `quantized=False` gives the full-precision base of a QLoRA run.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import is_deepspeed_zero3_enabled

    require_read(run)
    dtype = dtype or dtype_of(run)
    if dtype == torch.bfloat16:
        processes.warn_of_emulated_bf16()
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
    if run.attention:
        options["attn_implementation"] = run.attention
    if run.four_bit if quantized is None else quantized:
        options["quantization_config"] = four_bit(dtype)
    if not is_deepspeed_zero3_enabled():  # which shards the weights as they are read
        options["device_map"] = {"": "cpu" if processes.on_cpu() else int(processes.local_rank())}
    with _errors_in_a_sentence(run):
        model = AutoModelForCausalLM.from_pretrained(run.model(), **options)
    model.config.use_cache = True
    return model


def base_without_weights(run: RunFile) -> Any:
    """The run file's base model on torch's meta device: its modules and shapes, and no memory for weights.

    Raises click.ClickException when its configuration cannot be had, or is of no causal language model.
    """
    from transformers import AutoConfig

    with _errors_in_a_sentence(run):
        return without_weights(AutoConfig.from_pretrained(run.model(), trust_remote_code=False))


def without_weights(config: Any) -> Any:
    """The causal language model of a transformers configuration, on torch's meta device.

    Made by its class: `from_config` would share it out among the processes where DeepSpeed's ZeRO-3 is on.
    Raises ValueError for a configuration of another kind of model.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{type(config).__name__} is of no causal language model that transformers has")
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if kind.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    with torch.device("meta"):
        return kind(config)


def four_bit(compute_dtype: Any) -> Any:
    """NF4 with double quantization, as Axolotl's `adapter: qlora`."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_storage=torch.bfloat16,
    )


def load_adapter(model: Any, folder: Path, name: str = "default") -> Any:
    """A PeftModel around the base, or one more adapter on a PeftModel, with the folder's weights."""
    from peft import PeftModel

    try:
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), adapter_name=name)
            return model
        return PeftModel.from_pretrained(model, str(folder), adapter_name=name)
    except (RuntimeError, ValueError) as error:
        words = f"{folder}: the adapter does not fit this base model: {libraries.reason(error)}"
        raise click.ClickException(words) from None


@contextlib.contextmanager
def _errors_in_a_sentence(run: RunFile) -> Iterator[None]:
    """transformers' errors about a model that cannot be loaded, as one sentence."""
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError) as error:
        bundled = run.base_model.startswith(".cache")
        remedy = "run `make setup`" if bundled else "log in and check the name, or give a local folder"
        raise run.error(
            "base_model", f"{run.base_model} cannot be loaded; {remedy}. ({libraries.reason(error)})"
        ) from None
