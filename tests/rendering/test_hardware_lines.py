"""The hardware lines of the headers: which card, for which rows."""

import itertools
import re

from lora_recipes.config import yamlfile
from lora_recipes.rendering import ingredients, memory_model, render

import pytest

EMBEDDED = "smollm2-african-history"
PHI4 = "phi4-mini-african-history"


def header(recipe, variant, *settings):
    text = render.render(recipe, variant, settings)
    return text[text.index("# on:") + 8 : text.index("# run:")].replace("\n#       ", " | ").strip()


KNOWN = [
    name
    for name in ingredients.recipe_names()
    if ingredients.load_recipe(name).run["base_model"] in memory_model.models()
    and not ingredients.load_recipe(name).facts["cpu"]
]
"""The recipes for a GPU whose base model's dimensions are in templates/models.yaml."""

GPU = [(name, v) for name in KNOWN for v in render.checked_in(name)]


@pytest.mark.parametrize(("recipe", "variant"), GPU)
def test_the_header_names_the_smallest_card_that_holds_a_micro_batch_of_the_rows_it_says(recipe, variant):
    run = yamlfile.load(render.render(recipe, variant), "rendered").data
    facts = ingredients.load_recipe(recipe).facts
    said = re.match(r"one GPU with (\d+) GB: (\d+) rows a pass of up to ([\d,]+) tokens", header(recipe, variant))
    card, micro, most = (int(number.replace(",", "")) for number in said.groups())
    memory = memory_model.estimate(run, memory_model.models()[run["base_model"]])
    room = [0.93 * size * 2**30 - 2**30 for size in (0, 8, 12, 16, 24, 40, 48, 80)]
    smaller, larger = next(pair for pair in itertools.pairwise(room) if pair[1] == 0.93 * card * 2**30 - 2**30)
    padded = run.get("sample_packing") or not facts["row_tokens"]
    row = run["sequence_len"] if padded else 3 * facts["row_tokens"]
    assert micro == run["micro_batch_size"] and row <= most <= run["sequence_len"]
    assert smaller < memory.bytes(micro * row) <= memory.bytes(micro * most) <= larger
    assert most == run["sequence_len"] or memory.bytes(micro * (most + 1)) > larger


@pytest.mark.parametrize("recipe", ingredients.recipe_names())
def test_the_table_of_recipes_names_the_card_of_the_first_variant(recipe):
    hardware = ingredients.load_recipe(recipe).facts["hardware"]
    computed = header(recipe, render.checked_in(recipe)[0])
    assert hardware.split(" (")[0] == (computed.split(":")[0] if recipe in KNOWN else computed)


@pytest.mark.parametrize(
    ("recipe", "variant", "settings", "words"),
    [
        (PHI4, "lora", (), "one GPU with 24 GB: 8 rows a pass of up to 308 tokens; the data's have 87 on average"),
        (PHI4, "lora", (), "render --set micro_batch_size=1: 12 GB, and 24 GB for rows of 2,048 tokens"),
        (PHI4, "lora", ("micro_batch_size=1",), "one GPU with 12 GB: one row a pass of up to"),
        (
            PHI4,
            "lora",
            ("sequence_len=128",),
            "8 rows a pass of up to 128 tokens, its sequence_len",
        ),
        (PHI4, "lora", ("sample_packing=true",), "one GPU with over 80 GB: 8 rows a pass of 2,048 tokens"),
        (PHI4, "lora", ("gradient_checkpointing=true",), "one GPU with 16 GB"),
        (PHI4, "qlora", (), "up to 404 tokens"),
        (PHI4, "ds3", ("gpus=8",), "8 GPUs with 8 GB each: one row a pass of up to"),
        (PHI4, "lora", ("base_model=mine/model",), "for the recipe's own base model: one GPU with 24 GB (the base"),
        (PHI4, "lora", ("base_model=microsoft/phi-1_5",), "one GPU with 12 GB: 8 rows"),
        ("mistral-african-history", "lora", (), "one GPU with 40 GB: 4 rows"),
        ("mistral-african-history", "qlora", (), "one GPU with 16 GB: 4 rows"),
        ("mistral-african-history", "dora", (), "one GPU with 48 GB: 4 rows"),
        ("gemma3-african-history", "peft", (), "tools/train.py, which makes its logits in chunks: 12 GB"),
        (EMBEDDED, "qlora", (), "any CPU with 2 cores and 8 GB of memory; no GPU, no network"),
    ],
)
def test_the_header_says_where_a_file_trains(recipe, variant, settings, words):
    assert words in header(recipe, variant, *settings)


def test_the_embedded_recipe_fits_the_memory_that_its_header_names():
    """At its full sequence_len, beside 1 GiB of libraries."""
    run = yamlfile.load(render.render(EMBEDDED, "lora"), "rendered").data
    memory = memory_model.estimate(run, memory_model.models()[run["base_model"]])
    assert memory.bytes(run["micro_batch_size"] * run["sequence_len"]) + 2**30 < 8 * 2**30


def test_ingredients_of_ones_own_keep_their_words_for_a_model_that_is_not_known(tmp_path):
    text = (ingredients.RECIPES / f"{PHI4}.yaml").read_text().replace("base_model: microsoft/", "base_model: mine/")
    (tmp_path / "mine.yaml").write_text(re.sub(r"hardware: .*", "hardware: the GPU in my office", text))
    assert header(str(tmp_path / "mine.yaml"), "lora") == "the GPU in my office"
