"""How fast a run trained, and with how much memory; the card is simulated."""

from types import SimpleNamespace

from lora_recipes.config import runfile
from lora_recipes.results import result_files
from lora_recipes.training import progress

import pytest
import torch


def steps(spent, monkeypatch):
    """A Speed callback after steps of so many seconds, an evaluation of 100 s before the first and after the second."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    control = SimpleNamespace(should_evaluate=False, should_save=False, should_training_stop=False)
    counted, state = progress.Speed(), SimpleNamespace(epoch=0.0)

    def evaluate():
        now[0] += 100
        counted.on_evaluate(None, state, control)

    evaluate()
    for number, seconds in enumerate(spent):
        now[0] += seconds
        state.epoch += 0.25
        counted.on_step_end(None, state, control)
        if number == 1:
            evaluate()
            now[0] += 50
            counted.on_save(None, state, control)
    return counted


def test_tokens_a_second_are_those_of_the_steps_after_the_first(monkeypatch):
    run = SimpleNamespace(args=SimpleNamespace(bf16=False))
    counted = steps([30, 2, 2, 4], monkeypatch)
    assert counted.metrics(run, tokens=8000, trained=4000) == {"tokens_per_second": 750.0}  # 6,000 in 8 s
    assert steps([30], monkeypatch).metrics(run, 8000, 4000) == {}


@pytest.mark.parametrize(("tied", "head"), [(False, 97 * 32), (True, 97 * 32)])
def test_a_known_card_s_share_counts_4_a_frozen_weight_and_token(monkeypatch, tied, head):
    from test_padding_free import adapted

    model = adapted("Llama", {"tie_word_embeddings": tied})
    layers = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32) + 32
    operations = 4 * (layers * 6000 + head * 3000)
    assert progress.flops(model, 6000, 3000) == operations
    run = SimpleNamespace(args=SimpleNamespace(bf16=True), model=model)
    counted = steps([30, 2, 2, 4], monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(progress, "_PEAKS", (("L4", 1e9),))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert counted.metrics(run, 8000, 4000)["flop_share"] == pytest.approx(operations / 8 / 1e9, abs=1e-4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40")
    assert "flop_share" not in counted.metrics(run, 8000, 4000)


@pytest.mark.parametrize(
    ("card", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A40", 149.7e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA A10G", None),  # another card
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("Tesla T4", None),
    ],
)
def test_a_card_is_known_by_its_name(card, rate):
    assert progress.peak_rate(card) == rate


def test_the_peak_of_the_gpus_memory_is_noted(run_file, monkeypatch):
    run = runfile.load(run_file("peft"))
    assert "peak_gpu_memory_mb" not in result_files.section(run, {}, result_files.Stopwatch())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: (3 + device) * 2**30)
    assert result_files.section(run, {}, result_files.Stopwatch())["peak_gpu_memory_mb"] == 4096
