"""The runs as published: their values are those of published.json, their defects are in them."""

import json

from lora_recipes import ROOT
from lora_recipes.config import yamlfile
from lora_recipes.config.runfile import RunFile
from lora_recipes.rendering import ingredients, render
from lora_recipes.report import inputs
from lora_recipes.training import settings

import pytest

PEFT, AXOLOTL = "lorafrica-peft-as-published", "lorafrica-axolotl-as-published"
ALPACA = "phi1.5-alpaca-gpt4-as-published"
HISTORY, PHI = "phi4-mini-african-history", "phi1.5-alpaca-gpt4"
"""The recipes under which published.json keeps their figures."""


def published(recipe, way=""):
    """The settings of published.json, of one way to train where it is named."""
    found = json.loads(inputs.PUBLISHED.read_text())["settings"][recipe]
    return found["hyperparameters"][way] if way else found


def trainable(recipe, system):
    (row,) = [row for row in inputs.published(recipe) if row["system"] == system]
    return row["training"]["trainable_parameters"]


def parsed(recipe, variant, *changes):
    return yamlfile.load(render.render(recipe, variant, changes), "rendered").data


def chosen(config, *keys):
    return {key: config.get(key) for key in keys}


def lora(config):
    return {key: config[f"lora_{key}"] for key in ("r", "alpha", "dropout")}


def parameters(rank, layers, *shapes):
    """Trainable parameters of LoRA on linear layers of [in, out], in each of `layers` blocks."""
    return rank * layers * sum(sum(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("recipe", "variants"), [(PEFT, ["peft", "peft+ds2"]), (AXOLOTL, ["lora", "ds2"]), (ALPACA, ["peft+qlora"])]
)
def test_a_published_recipe_has_the_published_variants_and_says_what_it_is(recipe, variants):
    assert ingredients.load_recipe(recipe).facts["variants"] == variants
    for variant in variants:
        head = render.render(recipe, variant).split("### model")[0]
        assert "Kept to reproduce" in head and "Not in YAML" in head
        assert f"run:  axolotl train recipes/{recipe}/{variant}.yaml" in head


@pytest.mark.parametrize("variant", ["peft", "peft+ds2"])
def test_the_plain_run_has_the_published_values(variant):
    run, facts, common = parsed(PEFT, variant), published(HISTORY, "peft"), published(HISTORY)
    assert run["base_model"] == common["base_model"]
    assert lora(run) | {"target_modules": run["lora_target_modules"]} == facts["lora"]
    assert run["num_epochs"] == facts["epochs"]
    same = (
        *("micro_batch_size", "gradient_accumulation_steps", "learning_rate", "sequence_len", "bf16"),
        *("eval_steps", "save_steps", "logging_steps"),
    )
    assert chosen(run, *same) == chosen(facts, *same) and None not in chosen(facts, *same).values()
    assert run["seed"] == common["split"]["seed"] == 42
    assert run["datasets"][0]["type"]["system_prompt"] + "." == common["system_prompt"]


def test_the_plain_run_takes_the_published_steps():
    text = render.render(PEFT, "peft")
    run = RunFile(yamlfile.load(text, "rendered"), text, ROOT)
    assert run.steps(published(HISTORY)["splits"]["train"]) == 2650
    settings.read(run)


def test_the_plain_runs_targets_can_be_had_by_one_setting():
    run = parsed(PEFT, "peft", "special_tokens.eos_token=<|end|>")
    assert run["special_tokens"] == {"pad_token": "<|endoftext|>", "eos_token": "<|end|>"}


@pytest.mark.parametrize("variant", ["lora", "ds2"])
def test_the_axolotl_run_has_the_published_values(variant):
    run, facts = parsed(AXOLOTL, variant), published(HISTORY, "axolotl")
    assert {entry["type"] for key in ("datasets", "test_datasets") for entry in run[key]} == {facts["dataset_type"]}
    same = set(facts) - {"dataset_type"}
    assert len(same) == 15 and chosen(run, *same) == chosen(facts, *same)
    assert "attn_implementation" not in run


def test_both_published_ways_train_the_same_dead_names():
    run = parsed(AXOLOTL, "lora")
    assert lora(run) | {"target_modules": run["lora_target_modules"]} == published(HISTORY, "peft")["lora"]


def test_the_optimizer_goes_to_the_cpu_where_the_notes_say_so():
    run = parsed(PEFT, "peft+ds2", "deepspeed=deepspeed_configs/zero2_offload.json")
    zero = json.loads((ROOT / run["deepspeed"]).read_text())["zero_optimization"]
    facts = published(HISTORY, "deepspeed")
    assert zero["offload_optimizer"] == {"device": facts["offload_optimizer"], "pin_memory": facts["pin_memory"]}
    same = ("stage", "overlap_comm", "contiguous_gradients", "reduce_bucket_size")
    assert chosen(zero, *same) == chosen(facts, *same)


def test_the_alpaca_run_has_the_published_values():
    run, common, facts = parsed(ALPACA, "peft+qlora"), published(PHI), published(PHI, "qlora")
    assert run["base_model"] == common["base_model"] and run["datasets"][0]["path"] == common["dataset"]
    assert run["lora_target_modules"] == facts["lora"]["target_modules"]
    assert lora(run) == chosen(facts["lora"], "r", "alpha", "dropout")
    same = ("micro_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler", "max_steps")
    assert chosen(run, *same) == chosen(facts, *same) and None not in chosen(facts, *same).values()
    assert run["train_on_inputs"] is True and facts["loss_on"] == "all tokens"
    assert (run["load_in_4bit"], run["fp16"], run["bf16"]) == (True, True, False)


def test_the_parameter_counts_in_the_comments_are_the_layers_own():
    """Phi-4-mini: 32 layers of width 3072, rank 8; phi-1.5: 24 of width 2048, rank 16."""
    qkv, o, gate_up, down = ((3072, 5120), (3072, 3072), (3072, 16384), (8192, 3072))
    counts = {parameters(8, 32, shape) for shape in (qkv, o, gate_up, down)} | {parameters(8, 32, qkv, o)}
    text = (ingredients.RECIPES / f"{HISTORY}.yaml").read_text()
    assert [f"{count:,}" for count in sorted(counts) if f"{count:,}" not in text] == []
    assert parameters(8, 32, o) == trainable(HISTORY, "peft lora")
    assert f"{parameters(8, 32, o):,}" in render.render(PEFT, "peft")
    attention, mlp = [(2048, 2048)] * 4, [(2048, 8192), (8192, 2048)]
    assert parameters(16, 24, *mlp) == trainable(PHI, "qlora")
    assert f"{parameters(16, 24, *mlp):,}" in render.render(ALPACA, "peft+qlora")
    assert f"{parameters(16, 24, *attention, *mlp):,}" in render.render(PHI, "lora")
