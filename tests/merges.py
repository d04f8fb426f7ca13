"""A random Llama, an adapter on it and a run file: what the tests of merging and verifying are made of."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes import ROOT
from lora_recipes.models import shards

from click.testing import CliRunner, Result

RUN = """
base_model: {base}
special_tokens: {{eos_token: <end>, pad_token: <pad>}}
adapter: lora
datasets:
  - path: {data}
    split: train
    type: {{field_instruction: question, field_output: answer, no_input_format: "ask {{instruction}} say "}}
bf16: true
output_dir: {output_dir}
"""
ROWS = [{"question": f"who is n{n}", "answer": f"n{n} is the n{n + 1} of n{n + 2}"} for n in range(8)]
WORDS = ["<unk>", "<end>", "<pad>", "<old>", "ask", "say", "who", "is", "the", "of", *(f"n{n}" for n in range(118))]


def merge(*arguments: object) -> Result:
    spec = importlib.util.spec_from_file_location("merge_tool", ROOT / "tools" / "merge.py")
    assert spec and spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return CliRunner().invoke(tool.main, [str(argument) for argument in arguments])


def assert_refused(done: Result, *words: str) -> None:
    """Exit 1 with one sentence and no traceback."""
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ") and all(word in error for word in words), error


def write_base(folder: Path, tied: bool = False, **settings: Any) -> None:
    """A random Llama in bfloat16 with a tokenizer of whole words; untied ones in three shards."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokens
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": len(WORDS)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": WORDS.index("<old>")}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.2, tie_word_embeddings=tied, **settings)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="5GB" if tied else "100KB")
    words = Tokenizer(tokens.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<old>", unk_token="<unk>").save_pretrained(folder)


def write_adapter(base: Path, folder: Path, size: float = 0.05, **settings: Any) -> None:
    """An adapter on the linear layers with random A and B, as PEFT saves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj", "down_proj"], **settings}
    base_model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(base_model, LoraConfig(task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn_like(parameter) * size
            parameter.data = noise if "lora_" in name and "magnitude" not in name else parameter.data * (1 + noise)
    model.save_pretrained(folder)


def write_originals(folder: Path) -> Path:
    """A base, its adapter and test rows."""
    write_base(folder / "base")
    write_adapter(folder / "base", folder / "lora")
    (folder / "data").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for part in ("train", "test"):
        (folder / "data" / f"{part}.jsonl").write_text(text)
    return folder


def copy_setting(originals: Path, tmp_path: Path) -> SimpleNamespace:
    """A run file whose adapter a test may spoil; the base stays where the adapter says it is."""
    shutil.copytree(originals / "lora", tmp_path / "lora")
    run = tmp_path / "run.yaml"
    run.write_text(RUN.format(base=originals / "base", data=originals / "data", output_dir=tmp_path / "lora"))
    return SimpleNamespace(
        run=run,
        base=originals / "base",
        data=originals / "data",
        adapter=tmp_path / "lora",
        merged=tmp_path / "lora/merged",
    )


def tensors(folder: Path) -> dict[str, Any]:
    return {name: shards.read(entry) for name, entry in shards.tensors_of(folder).items()}


def spoil(adapter: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrite the adapter's tensors."""
    from safetensors.torch import load_file, save_file

    held = load_file(adapter / "adapter_model.safetensors")
    change(held)
    save_file(held, adapter / "adapter_model.safetensors")


def peft_model(setting: SimpleNamespace) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(setting.base, dtype=torch.float32)
    return PeftModel.from_pretrained(base, setting.adapter).eval()
