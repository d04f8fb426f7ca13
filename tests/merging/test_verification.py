"""A merge is verified by its tensors and by its answers, in less memory than the model takes."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.merging import divergence, folding, merge_plan, streaming, verification
from lora_recipes.models import loading, shards

import click
import pytest
from merges import assert_refused, merge, write_adapter, write_base


@pytest.mark.parametrize(
    ("merged", "base", "noise", "expected"),
    [
        (0.004, 0.5, 0.004, "verified"),
        (0.013, 0.5, 0.004, "failed"),
        (0.004, 0.0001, 0.004, "inconclusive"),
        (0.013, 0.0001, 0.004, "failed"),
        (1e-9, 0.0001, 0.0, "verified"),
        (1e-5, 0.0001, 0.0, "failed"),
        (float("nan"), 0.5, 0.004, "failed"),
    ],
)
def test_the_verdict_weighs_three_divergences(merged: float, base: float, noise: float, expected: str) -> None:
    kl = {"kl_adapter_merged": merged, "kl_adapter_base": base, "kl_noise_floor": noise}
    assert divergence.verdict(kl) == expected


def test_divergence_is_zero_only_between_equals() -> None:
    import torch

    even, skewed = (torch.tensor([p]).log() for p in ([0.5, 0.5], [0.9, 0.1]))
    assert divergence.mean_divergence([even], [even]) == 0.0
    assert divergence.mean_divergence([even], [skewed]) == pytest.approx(0.5108, abs=1e-4)  # ½·ln(0.25/0.09)


def row(prompt: int, answer: int) -> dict[str, list[int]]:
    return {
        "input_ids": [(7 * n + 3) % 100 for n in range(prompt + answer)],
        "labels": [-100] * prompt + list(range(answer)),
    }


def test_a_larger_model_is_asked_fewer_rows_and_one_at_least() -> None:
    rows = [row(20, 30), row(20, 40), row(300, 40)]
    assert divergence.affordable(rows[:2], 1_000_000) == rows[:2]
    for begin in (20, 300):
        (part,) = divergence.affordable([row(begin, 40)], 2_000_000_000)
        assert len(part["input_ids"]) == len(part["labels"]) == 35
        assert part["labels"] == row(begin, 40)["labels"][begin - 17 :][:35] and part["labels"][17] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tied", "settings"),
    [
        (False, {}),
        (True, {"use_dora": True, "target_modules": ["q_proj", "lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens", "norm"], "rank_pattern": {"q_proj": 2}}),
    ],
    ids=["untied", "dora on a tied head", "saved embeddings"],
)
def test_a_streamed_model_answers_as_a_loaded_one(
    setting: SimpleNamespace, tmp_path: Path, tied: bool, settings: dict[str, Any]
) -> None:
    """With the adapter, without it, and with the adapter folded in as PEFT folds it, row by row of a padded batch."""
    import torch
    from transformers import AutoModelForCausalLM

    if settings:
        setting.base = tmp_path / "other"
        write_base(setting.base, tied=tied)
        write_adapter(setting.base, setting.adapter, **settings)
    rows = [row(5, 30), row(9, 12)]
    loaded = AutoModelForCausalLM.from_pretrained(setting.base, dtype=torch.float32)
    if "lm_head" in str(settings):
        loaded.lm_head.weight = torch.nn.Parameter(loaded.lm_head.weight.detach().clone())
    weights = streaming.Weights(setting.base, ThreadPoolExecutor(2))
    streamed = streaming.opened(weights, torch.float32, setting.adapter)

    def assert_same(found: list[Any], expected: Any) -> None:
        for one, each in zip(found, rows, strict=True):
            assert (one - divergence.log_probabilities(expected, [each])[0]).abs().max() < 1e-4

    found, without = divergence.with_and_without(streamed, rows)
    assert_same(without, loaded)
    adapted = loading.load_adapter(loaded, setting.adapter).eval()
    assert_same(found, adapted)
    streaming.fold(weights, streamed)
    assert_same(
        divergence.log_probabilities(streaming.opened(weights, torch.float32), rows), adapted.merge_and_unload()
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "phi", "phi3", "qwen3", "gemma3_text"])
def test_every_family_of_the_recipes_is_streamed(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 120, "head_dim": 8}
    tokens = {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "initializer_range": 0.2}
    ends = {"eos_token_id": 1, "bos_token_id": 1}
    loaded = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **tokens, **ends)).eval()
    for parameter in loaded.parameters():  # biases and norms begin as zeros and ones
        parameter.data += 0.1 * torch.randn_like(parameter)
    loaded.save_pretrained(tmp_path)
    rows = [row(5, 30), row(9, 12)]
    streamed = streaming.opened(streaming.Weights(tmp_path, ThreadPoolExecutor(2)), torch.float32)
    found, expected = (divergence.log_probabilities(model, rows) for model in (streamed, loaded))
    assert all((one - other).abs().max() < 1e-4 for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
def test_a_model_whose_files_name_its_weights_otherwise_is_not_streamed(setting: SimpleNamespace) -> None:
    import torch

    weights = streaming.Weights(setting.base, ThreadPoolExecutor(2))
    del weights.stored["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(streaming.Unknown, match="layers.1.mlp.up_proj"):
        streaming.opened(weights, torch.float32)


@pytest.mark.slow
def test_a_tampered_shard_is_named(setting: SimpleNamespace) -> None:
    assert merge(setting.run, "--no-verify").exit_code == 0
    weight = shards.tensors_of(setting.merged)["model.layers.0.mlp.down_proj.weight"]
    content = bytearray(weight.file.read_bytes())
    content[weight.start : weight.start + 2] = b"\x80\x3f"  # 1.0 in bfloat16
    weight.file.write_bytes(content)
    plan = merge_plan.plan(runfile.load(setting.run), setting.adapter, "full")
    with pytest.raises(click.ClickException, match=rf"{weight.file.name}: {weight.name} .*more than one rounding"):
        verification.require_tensors(plan, setting.merged)
    assert merge(setting.run, "--no-verify").exit_code == 0  # a folder of ours is replaced
    assert verification.require_tensors(plan, setting.merged) == 30


@pytest.mark.slow
def test_a_wrong_merge_is_not_published(setting: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is off in the plan passes the comparison of tensors: the divergence has to find it."""
    right = merge_plan._additions

    def wrong(*arguments: Any) -> dict[str, merge_plan.Change]:
        made = right(*arguments)
        return {key: dataclasses.replace(change, scale=1.5 * change.scale) for key, change in made.items()}

    monkeypatch.setattr(merge_plan, "_additions", wrong)
    assert_refused(merge(setting.run), "differs from its adapter by KL", "nothing was kept")
    assert not setting.merged.exists() and not list(setting.adapter.glob(".merged.*/"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_a_fault_in_any_weight_is_found_before_anything_is_published(
    setting: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write = shards.write

    def spoilt(path: Path, entries: Any, parts: Any) -> str:
        made = list(map(bytes, parts))
        if at := [n for n, entry in enumerate(entries) if entry.name == name]:
            held = bytearray(made[at[0]])
            held[-2:] = b"\x80\x3f"  # 1.0 in bfloat16
            made[at[0]] = bytes(held)
        return write(path, entries, made)

    monkeypatch.setattr(shards, "write", spoilt)
    assert_refused(merge(setting.run, "--no-verify"), name, "merge again")
    assert not setting.merged.exists()


def train_in_four_bits(run: runfile.RunFile) -> None:
    """A few steps of LoRA on a 4-bit base, and the adapter in the run's output_dir."""
    from lora_recipes.data import prompts, rows

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = loading.load_base(run).train()
    ranks = {"r": run.config["lora_r"], "lora_alpha": run.config["lora_alpha"]}
    model = get_peft_model(model, LoraConfig(**ranks, target_modules="all-linear", task_type="CAUSAL_LM"))
    tokenizer = loading.load_tokenizer(run)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    for found, fmt in rows.load_parts(run, "train[:12]"):
        for row in found:
            example = {k: torch.tensor([v]) for k, v in prompts.example(tokenizer, fmt, row).items()}
            model(**example).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(run.output_dir)


def loaded_in_four_bits(run: runfile.RunFile) -> Any:
    """The adapter on the base as bitsandbytes has it, in float32 arithmetic.

    Dequantized once: on some CPUs bitsandbytes' own inference rounds block scales to bfloat16, which
    training does not.
    """
    import torch

    model = loading.load_base(run, loading.dtype_of(run), True).dequantize(dtype=torch.float32).float()
    return loading.load_adapter(model, run.output_dir).eval()


@pytest.mark.slow
def test_only_the_layers_that_qlora_quantized_are_rounded(
    run_file: Callable[..., Path], embedded_model: Path, tmp_path: Path
) -> None:
    """KL to the trained model: linear layers rounded < all 2-D weights (axolotl merge-lora) < full base."""
    path = run_file("qlora", "bf16=false")
    run = runfile.load(str(path))
    train_in_four_bits(run)
    assert merge(path, "--no-verify").exit_code == 0
    assert merge(path, "--no-verify", "--onto", "full", "-o", tmp_path / "full").exit_code == 0
    plan = merge_plan.plan(run, run.output_dir, "quantized")
    assert len(plan.quantized) == 210 and "model.embed_tokens.weight" not in plan.quantized
    everything = frozenset(entry.name for entry in plan.weights if len(entry.shape) == 2)
    (tmp_path / "all").mkdir()
    folding.write(run, dataclasses.replace(plan, quantized=everything), tmp_path / "all", lambda: None)

    examples = divergence.examples(run)[:3]
    trained = divergence.log_probabilities(loaded_in_four_bits(run), examples)

    def kl(folder: Path) -> float:
        document = dataclasses.replace(run.document, data={**run.config, "base_model": str(folder)})
        merged = loading.load_base(dataclasses.replace(run, document=document), quantized=False).eval()
        return divergence.mean_divergence(trained, divergence.log_probabilities(merged, examples))

    linear, all_2d, full = kl(run.output_dir / "merged"), kl(tmp_path / "all"), kl(tmp_path / "full")
    print(f"KL to the trained model: linear {linear:.4f}, all 2-D {all_2d:.4f}, full {full:.4f}")
    assert linear < all_2d / 3 and linear < full / 3
