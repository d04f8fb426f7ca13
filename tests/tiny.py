"""A tiny Llama with SmolLM2's tokenizer: random, but quick, and its answers differ by question and adapter."""

import shutil
from pathlib import Path
from typing import Any


def save_model(folder: Path, tokenizer: Path) -> Path:
    """Save the model, with the tokenizer of another; gives the folder."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=49152, initializer_range=0.4, bos_token_id=1, **sizes))
    # Axolotl saves do_sample: true; none of this may reach an evaluation.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=3.0, eos_token_id=[2, 7], pad_token_id=0
    )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    return folder


def save_adapter(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """Save an adapter on a base model, random but for what the settings of PEFT say; gives the folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    config = LoraConfig(r=16, task_type="CAUSAL_LM", **settings)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return folder


def padding_tokenizer() -> Any:
    """A tokenizer that can do nothing but pad, with token 0, and on the left unless it is told otherwise."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", padding_side="left")
