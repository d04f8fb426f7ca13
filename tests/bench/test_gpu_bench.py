"""bench/gpu.py on the CPU with tiny models: everything but the GPU itself."""

import dataclasses
import json
import re
import subprocess
import sys
from importlib import metadata

from lora_recipes import ROOT
from lora_recipes.training import progress

import gpu
import gpu_check
import gpu_models
import gpu_ways
import measuring
import pytest
import rates
import torch
from click.testing import CliRunner

SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1200,
    "pad_token_id": 0,
}
TINY = {
    name: dataclasses.replace(shape, dimensions={**shape.dimensions, **SMALL})
    for name, shape in gpu_models.SHAPES.items()
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(gpu_models, "SHAPES", TINY)


def setting(how, shape=gpu.PHI, length=0, rows=8, micro=4):
    return gpu.Setting(shape, length, rows, micro, how)


def test_the_rows_have_the_lengths_of_the_embedded_set_and_begin_again_after_the_last():
    lengths = gpu_models.history(483)
    assert len(lengths) == 483 and min(map(min, lengths)) > 10
    assert sum(map(sum, lengths)) / 483 == pytest.approx(
        87, abs=3
    )  # by SmolLM2's tokenizer 86.8, system prompt included
    assert gpu_models.history(485)[483:] == lengths[:2]


@pytest.mark.parametrize("shape", TINY)
def test_both_ways_make_the_same_gradients(shape):
    from lora_recipes.training import chunked_loss, padding_free

    model = gpu_models.made(TINY[shape], "cpu").float()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    batch = gpu_models.examples([(9, 5), (4, 5), (7, 5), (3, 5), (0, 6)], 1200)

    def gradients(step, micro, *more):
        step(model, batch, micro, *more)
        found = [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]
        model.zero_grad()
        return found

    expected = gradients(gpu_ways.padded, 2)
    assert padding_free.is_exact(model)
    found = gradients(gpu_ways.plain, 2, chunked_loss.bypass_lm_head(model))
    scale = max(gradient.abs().max() for gradient in expected)
    assert all((one - two).abs().max() <= 0.02 * scale for one, two in zip(expected, found, strict=True))  # in bf16


@pytest.mark.parametrize(("how", "length"), [("reference", 0), ("plain", 0), ("padded", 24), ("plain", 24)])
def test_training_is_measured(how, length):
    found = gpu_ways.measure(setting(how, length=length), 1, "cpu")
    assert found["tokens_per_second"] > 10 * found["samples_per_second"] > 0
    assert found["tokens_a_step"] == 8 * 24 if length else 500 < found["tokens_a_step"] < 900


@pytest.mark.parametrize(("how", "micro"), [("one-by-one", 1), ("answers", 5)])
def test_answers_are_measured(how, micro):
    model = gpu_models.made(TINY[gpu.PHI], "cpu")
    found = gpu_ways.answered(setting(how, rows=5, micro=micro), model, 4)
    assert found["tokens_per_second"] == pytest.approx(4 * found["questions_per_second"], rel=0.01)


def test_the_operations_of_a_model_are_those_of_its_frozen_layers_its_head_and_its_adapter():
    counted = rates.of_model(gpu_models.made(TINY[gpu.PHI], "cpu"))
    assert counted.head == 1200 * 32
    assert counted.linear == 2 * (32 * 64 + 32 * 32 + 32 * 128 + 64 * 32)  # qkv, o, gate and up, down
    assert counted.lora == 2 * 8 * ((32 + 64) + (32 + 32))


def test_the_figure_to_beat_is_the_share_that_the_docstring_says():
    """12,473 tokens a second of Llama 3.1 8B by our count: 4 a frozen weight, without its embeddings."""
    linear, head = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336), 128256 * 4096
    lora = 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    operations = rates.Flops(linear, head, lora).of(12473, 12473)
    assert f"{operations / progress.peak_rate('NVIDIA H100 80GB HBM3'):.1%}".replace("%", " %") in gpu.__doc__
    assert round(12473 * 4 * (linear + 2 * head) / 1e12) == 401  # and by theirs: 402


def test_axolotls_kernels_are_put_into_the_llama(monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaAttention

    monkeypatch.setattr(LlamaAttention, "forward", LlamaAttention.forward)  # restored after the rewriting
    model = gpu_models.made(TINY[gpu.LLAMA], "cpu")
    gpu_ways.fuse(model)
    monkeypatch.delattr(LlamaAttention, "_original_forward")
    layer = model.get_base_model().model.layers[0]
    fused = (layer.self_attn.apply_qkv, layer.self_attn.apply_o, layer.mlp.forward)
    assert [one.__func__.__name__ for one in fused] == ["apply_lora_qkv", "apply_lora_o", "apply_lora_mlp_swiglu"]
    assert "apply_qkv" in LlamaAttention.forward.__code__.co_names


def test_axolotls_way_is_left_out_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    left_out = {way.name for way in gpu.ways(list(gpu.WAYS), 4) if way.absent}
    assert left_out == {name for name in gpu.SETTINGS if name.endswith("axolotl")} and len(left_out) == 3


def test_there_are_ways_of_two_rows_a_pass_of_eight_and_of_eight_thousand_tokens_a_step():
    micro = {one.micro for one in gpu.SETTINGS.values() if one.how == "plain" and not one.length}
    assert micro == {8, 32} and all(one.micro == 2 for one in gpu.SETTINGS.values() if one.how == "reference")
    for shape in TINY:
        full = {one.how for one in gpu.SETTINGS.values() if one.shape == shape and one.length * one.rows == 8192}
        assert {"plain", "compiled"} < full
    assert sum(map(sum, gpu_models.history(96))) > 8000


def faked(monkeypatch, tmp_path, commands):
    """bench/gpu.py on a card that is not there; its ways run Python code, by name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *args: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path / "results" / "bench")
    monkeypatch.setattr(measuring.result_files, "environment", lambda: {})
    monkeypatch.setattr(gpu, "_command", lambda name, steps: [sys.executable, "-c", commands[name]])


def test_results_are_written_after_each_way_and_outlive_an_interruption(tmp_path, monkeypatch):
    names = list(gpu.SETTINGS)[:3]
    speed = 'print(\'{"model_tflops": 400, "tokens_per_second": 9}\')'
    commands = dict.fromkeys(names, speed) | {gpu.MATRIX: "print('{\"gflops\": 800000}')"}
    commands[names[1]] = "raise SystemExit('the GPU\\'s memory does not suffice: tried to allocate 40 GiB')"
    faked(monkeypatch, tmp_path, commands)
    run, ran = measuring._run, []

    def until_the_last(way, log):
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append(way.name)
        return run(way, log)

    monkeypatch.setattr(measuring, "_run", until_the_last)
    done = CliRunner().invoke(gpu.main, ["--rounds", "2", "--ways", ",".join(names)])
    assert done.exit_code == 1
    file = tmp_path / "results" / "bench" / "gpu-nvidia-h100-80gb-hbm3.json"
    ways = json.loads(file.read_text())["ways"]
    assert [len(ways[name]["rounds"]) for name in names] == [1, 0, 0]
    assert ways[names[0]]["median"]["steady_rate_share"] == 0.5
    assert ways[names[0]]["median"]["peak_rate_share"] == pytest.approx(400 / 989, abs=1e-4)
    assert "memory does not suffice" in ways[names[1]]["skipped"]


def test_a_gpu_without_memory_enough_is_one_sentence(monkeypatch, capsys):
    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB.")

    monkeypatch.setattr(gpu_models, "made", full)
    monkeypatch.setattr(sys, "argv", ["gpu_ways.py", next(iter(gpu.SETTINGS)), "4"])
    with pytest.raises(SystemExit, match="memory does not suffice: CUDA out of memory. Tried to allocate 40.00 GiB"):
        gpu_ways.run()


def test_attention_is_as_near_to_the_exact_one_as_pytorchs_own_and_another_is_refused(monkeypatch):
    from lora_recipes.training import row_attention

    found = gpu_check.check("cpu", torch.float32, TINY)
    assert len(found) == 2 * len(gpu_check.SHAPES) + 3 * len(TINY) and found["phi4-mini_exact"] == 1
    assert all(0 < value < 1e-5 for name, value in found.items() if name.endswith(("ours", "theirs")))
    assert found["phi4-mini_noise"] < 0.02 and 0 < found["phi4-mini_laid"] < 0.02  # in bf16
    right = row_attention.attention
    monkeypatch.setattr(
        row_attention, "attention", lambda *args, **others: right(*args, **others | {"sliding_window": None})
    )
    with pytest.raises(gpu_check.click.ClickException, match="attention of gemma3: .* where PyTorch's own has"):
        gpu_check.check("cpu", torch.float32, {})


def missing():
    """Modules of installed packages that torch, transformers, peft, triton and click do not ask for."""
    wanted = {"torch", "transformers", "peft", "triton", "click", "lora-recipes"}
    queue = list(wanted)
    while queue:
        name = queue.pop()
        try:
            asked = metadata.requires(name) if name != "lora-recipes" else []
        except metadata.PackageNotFoundError:
            continue
        for line in asked or []:
            other = re.split(r"[\s<>=!~;\[(]", line)[0].lower().replace("_", "-")
            if "extra ==" not in line and other not in wanted:
                wanted.add(other)
                queue.append(other)
    owners = metadata.packages_distributions().items()
    return sorted(name for name, packages in owners if not {one.lower().replace("_", "-") for one in packages} & wanted)


BARE = """
import importlib.machinery, json, os, sys
missing = set(json.loads(sys.argv[1]))
class Bare(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if one is importlib.machinery.PathFinder else one for one in sys.meta_path]
sys.path[:0] = [sys.argv[2] + "/bench", sys.argv[2] + "/tools", sys.argv[2] + "/tests"]
from pathlib import Path
import dataclasses, gpu, gpu_check, gpu_models, gpu_ways, measuring, torch
small = json.loads(sys.argv[4])
gpu_models.SHAPES = {
    name: dataclasses.replace(one, dimensions={**one.dimensions, **small}) for name, one in gpu_models.SHAPES.items()
}
measuring.RESULTS = Path(sys.argv[3])
measured = {gpu.CHECK: [gpu_check.check("cpu", torch.float32, gpu_models.SHAPES)], gpu.MATRIX: [{"gflops": 100}]}
for how in ("reference", "plain", "one-by-one", "answers"):
    setting = gpu.Setting(gpu.PHI, 0, 4, 2, how)
    measured[setting.name] = [gpu_ways.measure(setting, 1, "cpu")]
gpu.add_shares(measured, "a card")
print(measuring.save("gpu", [measuring.Way(name, "", []) for name in measured], measured, "gpu-x", steps=4))
"""


@pytest.mark.slow
def test_all_of_it_runs_with_torch_transformers_peft_triton_and_click_alone_and_without_git(tmp_path):
    names = missing()
    assert {"axolotl", "datasets", "trl", "deepspeed", "pandas"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", BARE, json.dumps(names), str(ROOT), str(tmp_path), json.dumps(SMALL)],
        env={"PATH": str(tmp_path), "HOME": str(tmp_path)},  # no git there
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    saved = json.loads((tmp_path / "gpu-x.json").read_text())
    assert saved["environment"]["git_commit"] is None and len(saved["ways"]) == 6
