"""The model that is trained: its adapter is on the layers that the run file names, or nothing is trained."""

from lora_recipes.config import runfile
from lora_recipes.training import lora_model

import click
import pytest


@pytest.fixture
def gpt2_run(run_file, tmp_path):
    """A run file on a tiny GPT-2, whose layers are no nn.Linear."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path / "gpt2")

    def make(*names):
        settings = (f"base_model={tmp_path}/gpt2", "bf16=false", f"lora_target_modules=[{','.join(names)}]")
        return runfile.load(run_file("peft", *settings))

    return make


def test_layers_of_gpt2_are_adapted(gpt2_run):
    model = lora_model.attach_lora(gpt2_run("c_attn"))
    assert model.base_model.targeted_module_names == ["transformer.h.0.attn.c_attn"]


def test_a_name_that_matches_nothing_is_an_error_that_names_those_there_are(gpt2_run):
    with pytest.raises(click.ClickException, match=r"lora_target_modules\.1: .*q_proj; it has c_attn, c_proj, c_fc"):
        lora_model.attach_lora(gpt2_run("c_attn", "q_proj"))
