"""--set, variants joined and ingredients of one's own: what comes of them, and what is refused."""

import shutil

from lora_recipes.rendering import ingredients, render

import click
import pytest
from rendered import parsed

RECIPES = ingredients.recipe_names()
FILES = [(recipe, variant) for recipe in RECIPES for variant in render.checked_in(recipe)]
KERNELS = {"lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"}


@pytest.mark.parametrize(
    ("recipe", "variant", "settings", "words"),
    [
        ("phi4-mini-africa-history", "lora", [], ["did you mean 'phi4-mini-african-history'"]),
        ("nowhere/mine.yaml", "lora", [], ["no ingredients file nowhere/mine.yaml"]),
        (RECIPES[0], "sd2", [], ["no variant 'sd2'", "did you mean 'ds2'"]),
        (RECIPES[0], "ds2+ds3", [], ["makes no sense", "choose ds2 or ds3"]),
        (RECIPES[0], "qlora+ds3", [], ["makes no sense", "use qlora+ds2"]),
        (RECIPES[0], "ds2+ds2", [], ["twice"]),
        (RECIPES[0], "", [], ["no variant ''"]),
        (RECIPES[0], "lora", ["learning_rte=1"], ["learning_rte", "did you mean 'learning_rate'"]),
        (RECIPES[0], "lora", ["datasets.0.type.system_promt=x"], ["did you mean 'datasets.0.type.system_prompt'"]),
        (RECIPES[0], "lora", ["datasets.4.path=x"], ["no entry 4"]),
        (RECIPES[0], "lora", ["micro_batch_size=many"], ["expected int", "'many'"]),
        (RECIPES[0], "lora", ["learning_rate"], ["expected key=value"]),
        (RECIPES[0], "lora", ["gpus=0"], ["from 1"]),
        (RECIPES[0], "lora", ["gpus=3"], ["global batch", "divides"]),
        (RECIPES[0], "lora", ["micro_batch_size=0"], ["global batch", "divides"]),
        (RECIPES[0], "lora", ["plugins=[a"], ["not valid YAML"]),
        (RECIPES[0], "lora", ["seed.x=1"], ["no such key"]),
    ],
)
def test_wrong_usage_is_one_sentence_with_the_remedy(recipe, variant, settings, words):
    with pytest.raises(click.UsageError) as caught:
        render.render(recipe, variant, tuple(settings))
    assert all(word in caught.value.message for word in words), caught.value.message


def test_set_gives_a_value_the_type_of_its_key():
    run = parsed(
        "smollm2-african-history",
        "lora",
        "learning_rate=1e-4",
        "max_steps=3",
        "bf16=false",
        "wandb_project=123",
        "lora_target_modules=[q_proj]",
        "datasets.0.type.system_prompt=Be brief: no",
        "dataset_prepared_path=",
    )
    assert run["learning_rate"] == 1e-4 and run["max_steps"] == 3 and run["bf16"] is False
    assert run["wandb_project"] == "123" and run["lora_target_modules"] == ["q_proj"]
    assert run["datasets"][0]["type"]["system_prompt"] == "Be brief: no"
    assert run["dataset_prepared_path"] == ""


def test_set_of_one_data_set_leaves_the_other_alone():
    run = parsed("smollm2-african-history", "lora", "datasets.0.type.system_prompt=x")
    assert run["test_datasets"][0]["type"]["system_prompt"] != "x"


@pytest.mark.parametrize(
    ("recipe", "gpus", "micro", "steps"),
    [
        ("phi4-mini-african-history", 1, 8, 1),
        ("phi4-mini-african-history", 4, 2, 1),
        ("mistral-african-history", 1, 4, 2),
        ("mistral-african-history", 2, 4, 1),
        ("phi1.5-alpaca-gpt4", 1, 2, 8),
        ("phi1.5-alpaca-gpt4", 4, 2, 2),
    ],
)
def test_the_global_batch_stays_when_gpus_change(recipe, gpus, micro, steps):
    run = parsed(recipe, "ds2", f"gpus={gpus}")
    assert (run["micro_batch_size"], run["gradient_accumulation_steps"]) == (micro, steps)
    assert micro * steps * gpus == ingredients.load_recipe(recipe).facts["global_batch"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_micro_batches_of_every_recipe_make_its_global_batch(recipe):
    facts = ingredients.load_recipe(recipe).facts
    for variant in render.checked_in(recipe):
        run = parsed(recipe, variant)
        assert run["micro_batch_size"] * run["gradient_accumulation_steps"] * facts["gpus"] == facts["global_batch"]


def test_a_variant_is_one_file(tmp_path, monkeypatch):
    shutil.copytree(render.VARIANTS, tmp_path / "variants")
    (tmp_path / "variants" / "packed.yaml").write_text("variant:\n  words: packed\nsample_packing: true\n")
    monkeypatch.setattr(render, "VARIANTS", tmp_path / "variants")
    render.variants.cache_clear()
    try:
        assert render.checked_in(RECIPES[0])[-1] == "packed" and list(render.variants())[-1] == "packed"
        assert parsed(RECIPES[0], "packed+qlora")["sample_packing"] is True
        assert ", QLoRA + packed." in render.render(RECIPES[0], "packed+qlora")
    finally:
        render.variants.cache_clear()


def test_ingredients_of_ones_own_render(tmp_path):
    text = (ingredients.RECIPES / "smollm2-african-history.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("lora_r: 16", "lora_r: 4"))
    run = parsed(str(tmp_path / "mine.yaml"), "lora")
    assert run["lora_r"] == 4 and run["output_dir"] == "outputs/mine/lora"
