"""The embedded models: converted once, checked, safe for two at once."""

import json
import subprocess
import sys

from lora_recipes.models import bundled

import click
import pytest


def test_the_end_token_is_the_chat_templates(embedded_model):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert AutoConfig.from_pretrained(embedded_model).eos_token_id == tokenizer.eos_token_id == 2
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert turn.endswith("x<|im_end|>\n")


def test_the_tensors_have_the_known_hash(embedded_model):
    record = json.loads((embedded_model / "converted.json").read_text())
    assert bundled.tensors_sha256(embedded_model / "model.safetensors") == record["tensors_sha256"]


def test_a_damaged_package_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "_GGUF_SHA256", "0" * 64)
    with pytest.raises(click.ClickException, match=r"not the model file expected .*make setup"):
        bundled.ensure_chat_model(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == [".model.lock"]


def test_the_scoring_model_is_there():
    assert (bundled.scoring_model() / "tokenizer.json").exists()


@pytest.mark.slow
def test_two_processes_at_once_convert_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from lora_recipes.models import bundled; "
        "bundled.ensure_chat_model(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("Converting" in text for text in said) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]
