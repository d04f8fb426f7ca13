"""The base model and tokenizer of a run file: none other than Axolotl would load."""

from lora_recipes.config import runfile
from lora_recipes.merging import merge_plan
from lora_recipes.models import loading

import click
import pytest


@pytest.mark.parametrize(
    "setting",
    [
        *("revision_of_model=main", "model_revision=main", "tokenizer_config=other/model", "base_model_config=other"),
        *("overrides_of_model_config={rope_theta: 5}", "added_tokens_overrides={1: <a>}", "tokens=[<a>]"),
        *("load_in_8bit=true", "gptq=true", "tokenizer_use_mistral_common=true"),
    ],
)
def test_a_key_with_which_axolotl_loads_another_model_is_refused(run_file, embedded_model, setting):
    """An answer of another model, or of one that another tokenizer spells for, would read like a result."""
    path = run_file("lora", setting)
    run, key = runfile.load(path), setting.partition("=")[0]
    for use in (loading.load_tokenizer, loading.load_base, lambda run: merge_plan.plan(run, run.output_dir, "full")):
        with pytest.raises(click.ClickException, match=rf"{path}, line \d+: {key}: .*delete the key"):
            use(run)


@pytest.mark.parametrize(
    "setting", ["load_in_8bit=false", "tokens=[]", "tokenizer_config=.cache/models/SmolLM2-135M-Instruct"]
)
def test_one_that_changes_nothing_is_taken(run_file, embedded_model, setting):
    assert loading.load_tokenizer(runfile.load(run_file("lora", setting))).eos_token == "<|im_end|>"
