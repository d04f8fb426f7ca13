"""A key that this machine cannot follow is said before it is trained."""

from lora_recipes.check import machine
from lora_recipes.support import processes

import pytest

CPU = "plugins: [lora_recipes.plugin.CpuPlugin]\n"


@pytest.fixture
def findings(findings_of, monkeypatch):
    """What the check says to a text on a machine without a GPU whose processor has bf16."""
    monkeypatch.setattr(processes, "on_cpu", lambda: True)
    monkeypatch.setattr(processes, "has_bf16", lambda: True)
    return lambda text: findings_of(machine.check, text)


@pytest.mark.parametrize(
    "line",
    [
        *("attn_implementation: flash_attention_2", "attn_implementation: flex_attention", "lora_mlp_kernel: true"),
        *("load_in_8bit: true", "fp8: true", "bf16: auto", "optimizer: ao_adamw_fp8", "tf32: true"),
    ],
)
def test_a_key_that_needs_a_gpu_is_a_note_and_in_a_file_for_a_cpu_an_error(findings, monkeypatch, line):
    for text, severity in ((f"{line}\n", "note"), (f"{CPU}{line}\n", "error")):
        (finding,) = findings(text)
        assert (finding.severity, finding.check, finding.found) == (severity, "needs-gpu", line)
    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    assert findings(f"{CPU}{line}\n") == []


def test_all_keys_that_need_a_gpu_are_one_note(findings):
    (finding,) = findings("bf16: true\nload_in_8bit: true\nattn_implementation: xformers\n")
    assert finding.found == "attn_implementation: xformers, load_in_8bit: true, bf16: true"


def test_what_runs_on_a_cpu_is_not_said_to_need_a_gpu(findings):
    text = "bf16: true\nattn_implementation: sdpa\nlora_mlp_kernel: false\noptimizer: adamw_bnb_8bit\n"
    assert findings(CPU + text) == []


def test_bf16_is_a_warning_in_a_file_for_a_cpu_where_the_processor_emulates_it(findings, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: False)
    (finding,) = findings(f"{CPU}bf16: true\n")
    assert (finding.severity, finding.check, finding.key) == ("warning", "emulated-bf16", "bf16")
    assert findings(f"{CPU}bf16: false\n") == []
    assert [one.check for one in findings("bf16: true\n")] == ["needs-gpu"]
