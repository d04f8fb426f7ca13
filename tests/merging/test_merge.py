"""tools/merge.py: the merged model is its adapter on its base, or nothing is written."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes import ROOT
from lora_recipes.merging import verification
from lora_recipes.models import shards
from lora_recipes.support import files

import pytest
from merges import (
    RUN,
    WORDS,
    assert_refused,
    merge,
    peft_model,
    spoil,
    tensors,
    write_adapter,
    write_base,
)


def test_help_comes_without_a_heavy_import() -> None:
    code = """
import runpy, sys
sys.argv = ["merge.py", "--help"]
try:
    runpy.run_path("tools/merge.py", run_name="__main__")
except SystemExit:
    print(*{"torch", "transformers", "peft"} & set(sys.modules), file=sys.stderr, end="")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Example:" in done.stdout and done.stderr == ""


def test_wrong_usage_is_exit_two(setting_text: Path) -> None:
    assert merge(setting_text, "--onto", "quantized").exit_code == 2
    assert merge(setting_text.with_name("absent.yaml")).exit_code == 2


@pytest.fixture
def setting_text(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(base="nowhere", data="nowhere", output_dir=tmp_path / "lora"))
    return path


def test_a_streamed_file_is_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    held = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(3)}
    save_file(held, tmp_path / "one.safetensors")
    entries = shards.tensors_in(tmp_path / "one.safetensors")
    content = (tmp_path / "one.safetensors").read_bytes()
    parts = [content[entry.start : entry.start + entry.size] for entry in entries.values()]
    digest = shards.write(tmp_path / "two.safetensors", list(entries.values()), parts)
    again = load_file(tmp_path / "two.safetensors")
    assert digest == files.sha256(tmp_path / "two.safetensors")
    assert again.keys() == held.keys() and all(torch.equal(again[name], held[name]) for name in held)


def test_a_part_may_be_used_anew_once_the_next_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size, count = 64, 4

    class Slow:
        def __init__(self) -> None:
            self.digest = hashlib.sha256()
            self.hexdigest = self.digest.hexdigest

        def update(self, part: Any) -> None:
            time.sleep(0.05)
            self.digest.update(part)

    monkeypatch.setattr(shards, "hashlib", SimpleNamespace(sha256=Slow))
    entries = [shards.Stored(f"n{n}", tmp_path / "none", "F32", (size // 4,), 0, size) for n in range(count)]
    buffer = bytearray(size)

    def parts() -> Iterator[bytearray]:
        for n in range(count):
            buffer[:] = bytes([n]) * size
            yield buffer

    import torch

    digest = shards.write(tmp_path / "model.safetensors", entries, parts())
    assert digest == files.sha256(tmp_path / "model.safetensors")
    assert [tensors(tmp_path)[f"n{n}"].view(torch.uint8)[0].item() for n in range(count)] == list(range(count))


def test_too_few_bytes_are_no_file(tmp_path: Path) -> None:
    entry = shards.Stored("n", tmp_path / "none", "F32", (4,), 0, 16)
    with pytest.raises(ValueError, match="8 bytes were given for 16"):
        shards.write(tmp_path / "model.safetensors", [entry], [bytes(8)])


@pytest.mark.slow
def test_a_sharded_base_merges_to_what_peft_makes_of_it(setting: SimpleNamespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    done = merge(setting.run)
    assert done.exit_code == 0, done.output
    assert "verified" in done.stdout and "noise floor" in done.stdout
    index = json.loads((setting.merged / shards.INDEX).read_text())
    assert sorted(set(index["weight_map"].values())) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert set(index["weight_map"]) == set(tensors(setting.base))
    assert index["metadata"]["total_size"] == sum(e.size for e in shards.tensors_of(setting.merged).values())
    expected = peft_model(setting).merge_and_unload().state_dict()
    for name, found in tensors(setting.merged).items():
        assert torch.equal(found, expected[name].to(torch.bfloat16)), name
    model = AutoModelForCausalLM.from_pretrained(setting.merged, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(setting.merged)
    assert model.dtype == torch.bfloat16 and tokenizer.eos_token == "<end>"
    assert model.generation_config.eos_token_id == [WORDS.index("<end>"), WORDS.index("<old>")]
    record = json.loads((setting.merged / verification.RECORD).read_text())
    result = json.loads((setting.adapter / "result.json").read_text())["merge"]
    assert result["metrics"]["kl_adapter_merged"] == record["kl"]["kl_adapter_merged"] < record["kl"]["kl_adapter_base"]
    assert result["verdict"] == record["verdict"] == "verified"
    assert record["files"] == {
        path.name: files.sha256(path) for path in setting.merged.iterdir() if path.name != verification.RECORD
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["rslora and patterns", "dora", "saved head", "saved embeddings", "lora on a tied head", "lora on embeddings"],
)
def test_every_kind_of_adapter_answers_as_its_merge_does(setting: SimpleNamespace, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    setting.base = setting.run.parent / "tied"
    write_base(setting.base, tied=True)
    write_adapter(setting.base, setting.adapter, **settings)
    setting.run.write_text(RUN.format(base=setting.base, data=setting.data, output_dir=setting.adapter))
    done = merge(setting.run)
    assert done.exit_code == 0 and "verified" in done.stdout, done.output
    merged = AutoModelForCausalLM.from_pretrained(setting.merged, dtype=torch.float32)
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        expected, found = peft_model(setting)(input_ids=ids).logits, merged(input_ids=ids).logits
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()  # bfloat16 weights
    tied = not any(name in str(settings) for name in ("lm_head", "embed_tokens"))
    assert json.loads((setting.merged / "config.json").read_text())["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in tensors(setting.merged)) is not tied


@pytest.mark.slow
@pytest.mark.parametrize("said", [True, False])
def test_layers_that_lie_transposed_are_folded_as_they_lie(
    originals: Path, setting: SimpleNamespace, said: bool
) -> None:
    """GPT-2's, whatever fan_in_fan_out its adapter's settings say: PEFT, too, looks at the layer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    setting.base = setting.run.parent / "gpt2"
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": len(WORDS)}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).to(torch.bfloat16).save_pretrained(
        setting.base
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(originals / "base" / name, setting.base)
    write_adapter(setting.base, setting.adapter, target_modules=["c_attn", "c_proj", "wte"])
    path = setting.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": said}))
    setting.run.write_text(RUN.format(base=setting.base, data=setting.data, output_dir=setting.adapter))
    done = merge(setting.run)
    assert done.exit_code == 0 and "verified" in done.stdout, done.output
    found = tensors(setting.merged)
    expected = peft_model(setting).base_model.model.transformer.h[1].mlp.c_proj
    expected.merge()
    assert torch.equal(found["transformer.h.1.mlp.c_proj.weight"], expected.base_layer.weight.to(torch.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings", "targets"),
    [
        ("Bloom", {"n_layer": 2, "n_head": 2}, ["query_key_value"]),
        (
            "GptOss",
            {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
            | {"head_dim": 16, "intermediate_size": 32},
            ["q_proj", "v_proj"],
        ),
    ],
)
def test_a_model_whose_attention_pytorch_does_not_have_is_verified_with_its_own(
    originals: Path, setting: SimpleNamespace, family: str, settings: dict[str, Any], targets: list[str]
) -> None:
    import torch
    import transformers

    setting.base = setting.run.parent / family
    config = getattr(transformers, f"{family}Config")(vocab_size=len(WORDS), hidden_size=32, **settings)
    getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(setting.base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(originals / "base" / name, setting.base)
    write_adapter(setting.base, setting.adapter, target_modules=targets)
    setting.run.write_text(RUN.format(base=setting.base, data=setting.data, output_dir=setting.adapter))
    done = merge(setting.run)
    assert done.exit_code == 0 and "KL(adapter, merged)" in done.stdout, done.output


@pytest.mark.slow
def test_a_trained_bias_is_added_to_the_bias(setting: SimpleNamespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    setting.base = setting.run.parent / "biased"
    write_base(setting.base, attention_bias=True)
    write_adapter(setting.base, setting.adapter, target_modules=["q_proj"], lora_bias=True)
    setting.run.write_text(RUN.format(base=setting.base, data=setting.data, output_dir=setting.adapter))
    done = merge(setting.run)
    assert done.exit_code == 0 and "verified" in done.stdout, done.output
    expected = peft_model(setting).merge_and_unload().state_dict()
    for name, found in AutoModelForCausalLM.from_pretrained(setting.merged, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(found, expected[name].to(torch.bfloat16)), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"lora_bias": True}, "no file holds model.layers.0.self_attn.q_proj.bias"),
        ({"use_dora": True, "target_modules": ["embed_tokens"]}, "DoraEmbeddingVariant on model.embed_tokens is not"),
        ({"target_modules": [], "target_parameters": ["up_proj.weight"]}, "target_parameters: "),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices: "),
    ],
)
def test_what_is_not_folded_is_left_to_peft(setting: SimpleNamespace, settings: dict[str, Any], word: str) -> None:
    write_adapter(setting.base, setting.adapter, **settings)
    assert_refused(merge(setting.run), word, "PEFT's merge_and_unload")


@pytest.mark.slow
def test_a_dry_run_tells_the_plan_and_writes_nothing(setting: SimpleNamespace) -> None:
    before = sorted(setting.run.parent.rglob("*"))
    done = merge(setting.run, "--dry-run")
    assert done.exit_code == 0, done.output
    assert "9 by the adapter of 30" in done.stdout and "in 3 shards" in done.stdout
    assert sorted(setting.run.parent.rglob("*")) == before
    spoil(setting.adapter, lambda held: held.update({k.replace("s.2", "s.7"): v + 0 for k, v in held.items()}))
    done = merge(setting.run, "--dry-run")
    assert_refused(done, "6 of its keys match no weight", "layers.7")
