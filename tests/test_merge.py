"""tools/merge.py: the merged model is its adapter on its base, or nothing is written."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes import ROOT, divergence, mergeplan, merging, models, runfile, shards, verifying

import pytest
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


def write_base(folder: Path, tied: bool = False) -> None:
    """A random Llama in bfloat16 with a tokenizer of whole words; untied ones in three shards."""
    import torch
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as tokens
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": len(WORDS)}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": WORDS.index("<old>")}
    config = LlamaConfig(**sizes, **heads, initializer_range=0.2, tie_word_embeddings=tied)
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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, its adapter and test rows, made once."""
    folder = tmp_path_factory.mktemp("merge")
    write_base(folder / "base")
    write_adapter(folder / "base", folder / "lora")
    (folder / "data").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    for part in ("train", "test"):
        (folder / "data" / f"{part}.jsonl").write_text(text)
    return folder


@pytest.fixture
def setting(originals: Path, tmp_path: Path) -> SimpleNamespace:
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
    assert merge(setting_text, "--dry-run", "--check").exit_code == 2
    assert merge(setting_text, "--onto", "quantized").exit_code == 2
    assert merge(setting_text.with_name("absent.yaml")).exit_code == 2


@pytest.fixture
def setting_text(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN.format(base="nowhere", data="nowhere", output_dir=tmp_path / "lora"))
    return path


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


def test_a_streamed_file_is_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    held = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.arange(3)}
    save_file(held, tmp_path / "one.safetensors")
    entries = shards.tensors_in(tmp_path / "one.safetensors")
    digest = shards.write(tmp_path / "two.safetensors", list(entries.values()), shards.read_bytes)
    again = load_file(tmp_path / "two.safetensors")
    assert digest == shards.sha256(tmp_path / "two.safetensors")
    assert again.keys() == held.keys() and all(torch.equal(again[name], held[name]) for name in held)


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
    record = json.loads((setting.merged / verifying.RECORD).read_text())
    result = json.loads((setting.adapter / "result.json").read_text())["merge"]
    assert result["metrics"]["kl_adapter_merged"] == record["kl"]["kl_adapter_merged"] < record["kl"]["kl_adapter_base"]
    assert result["verdict"] == record["verdict"] == "verified"
    assert merge(setting.run, "--check").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
    ids=["rslora and patterns", "dora", "saved head", "saved embeddings", "lora on a tied head"],
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
def test_a_dry_run_tells_the_plan_and_writes_nothing(setting: SimpleNamespace) -> None:
    before = sorted(setting.run.parent.rglob("*"))
    done = merge(setting.run, "--dry-run")
    assert done.exit_code == 0, done.output
    lines = dict(line.split(maxsplit=1) for line in done.stdout.replace("adapter keys ", "").splitlines())
    assert (lines["matched"], lines["unmatched"]) == ("18", "0")
    assert "in 3 shards" in done.stdout and "peak memory" in done.stdout
    assert sorted(setting.run.parent.rglob("*")) == before
    spoil(setting.adapter, lambda held: held.update({k.replace("s.2", "s.7"): v + 0 for k, v in held.items()}))
    done = merge(setting.run, "--dry-run")
    assert_refused(done, "6 of its keys match no weight", "layers.7")
    assert done.stdout.count("\nunmatched") == 6


def _zero(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: [held[name].zero_() for name in held if "lora_B" in name])


def _nan(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: held[sorted(held)[-1]].fill_(float("nan")))


def _truncated(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rank(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 8'))


def _other_name(setting: SimpleNamespace) -> None:
    shutil.copytree(setting.base, setting.run.parent / "other")
    setting.run.write_text(setting.run.read_text().replace(str(setting.base), str(setting.run.parent / "other")))


def _other_shape(setting: SimpleNamespace) -> None:
    spoil(setting.adapter, lambda held: held.update({k: v[:, :32].clone() for k, v in held.items() if "lora_A" in k}))


def _pissa(setting: SimpleNamespace) -> None:
    path = setting.adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"init_lora_weights": true', '"init_lora_weights": "pissa"'))


def _absent_base(setting: SimpleNamespace) -> None:
    setting.run.write_text(setting.run.read_text().replace(str(setting.base), str(setting.run.parent / "base")))


def _strangers_folder(setting: SimpleNamespace) -> None:
    setting.merged.mkdir()
    (setting.merged / "thesis.tex").write_text("mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoiled", "word"),
    [
        (_zero, "every lora_B is zero"),
        (_nan, "not finite"),
        (_truncated, "not a whole safetensors file"),
        (_rank, "has rank 4, adapter_config.json says 8"),
        (_other_name, "was trained on"),
        (_other_shape, "is of shape"),
        (_pissa, "init_lora_weights: pissa is not merged here"),
        (_absent_base, "there is no folder"),
        (_strangers_folder, "holds thesis.tex, which no merge wrote"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_a_sentence(
    setting: SimpleNamespace, spoiled: Callable[[SimpleNamespace], None], word: str
) -> None:
    spoiled(setting)
    before = sorted(setting.run.parent.rglob("*"))
    assert_refused(merge(setting.run), word)
    assert sorted(setting.run.parent.rglob("*")) == before


@pytest.mark.slow
def test_a_tampered_shard_is_named(setting: SimpleNamespace) -> None:
    assert merge(setting.run, "--no-verify").exit_code == 0
    weight = shards.tensors_of(setting.merged)["model.layers.0.mlp.down_proj.weight"]
    content = bytearray(weight.file.read_bytes())
    content[weight.start : weight.start + 2] = b"\x80\x3f"  # 1.0 in bfloat16
    weight.file.write_bytes(content)
    assert_refused(merge(setting.run, "--check"), weight.file.name, "changed since it was merged")
    record = json.loads((setting.merged / verifying.RECORD).read_text())
    record["files"][weight.file.name] = shards.sha256(weight.file)
    (setting.merged / verifying.RECORD).write_text(json.dumps(record))
    assert_refused(merge(setting.run, "--check"), weight.file.name, weight.name, "more than one rounding")
    assert merge(setting.run, "--no-verify").exit_code == 0  # a folder of ours is replaced
    assert merge(setting.run, "--check").exit_code == 0
    spoil(setting.adapter, lambda held: [tensor.mul_(2) for tensor in held.values()])
    assert_refused(merge(setting.run, "--check"), "adapter_model.safetensors", "changed since it was merged")


@pytest.mark.slow
def test_a_wrong_merge_is_not_published(setting: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that is off in the plan passes the comparison of tensors: the divergence has to find it."""
    right = mergeplan._scale
    monkeypatch.setattr(mergeplan, "_scale", lambda *arguments: 1.5 * right(*arguments))
    assert_refused(merge(setting.run), "differs from its adapter by KL", "nothing was kept")
    assert not setting.merged.exists() and not list(setting.adapter.glob(".merged.*/"))


def train_in_four_bits(run: runfile.RunFile) -> None:
    """A few steps of LoRA on a 4-bit base, and the adapter in the run's output_dir."""
    from lora_recipes import prompts, rows

    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = models.load_base(run).train()
    options = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**options))
    tokenizer = models.load_tokenizer(run)
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-3)
    for found, fmt in rows.load_parts(run, "train[:12]"):
        for row in found:
            example = {k: torch.tensor([v]) for k, v in prompts.example(tokenizer, fmt, row).items()}
            model(**example).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(run.output_dir)


@pytest.mark.slow
def test_only_the_layers_that_qlora_quantized_are_rounded(
    run_file: Callable[..., Path], embedded_model: Path, tmp_path: Path
) -> None:
    """KL to the trained model: linear layers rounded < all 2-D weights (axolotl merge-lora) < full base."""
    path = run_file("qlora")
    run = runfile.load(str(path))
    train_in_four_bits(run)
    assert merge(path, "--no-verify").exit_code == 0
    assert merge(path, "--no-verify", "--onto", "full", "-o", tmp_path / "full").exit_code == 0
    plan = mergeplan.plan(run, run.output_dir, "quantized")
    assert len(plan.quantized) == 210 and "model.embed_tokens.weight" not in plan.quantized
    everything = frozenset(entry.name for entry in plan.weights if len(entry.shape) == 2)
    (tmp_path / "all").mkdir()
    merging.write(run, dataclasses.replace(plan, quantized=everything), tmp_path / "all", lambda: None)

    examples = divergence.examples(run)[:3]
    trained = divergence.log_probabilities(divergence.adapted(run, plan, True), examples)

    def kl(folder: Path) -> float:
        merged = models.load_base(divergence.changed(run, base_model=str(folder)), quantized=False).eval()
        return divergence.mean_divergence(trained, divergence.log_probabilities(merged, examples))

    linear, all_2d, full = kl(run.output_dir / "merged"), kl(tmp_path / "all"), kl(tmp_path / "full")
    print(f"KL to the trained model: linear {linear:.4f}, all 2-D {all_2d:.4f}, full {full:.4f}")
    assert linear < all_2d / 3 and linear < full / 3
