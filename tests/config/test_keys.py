"""The stored key table is the pinned Axolotl's own."""

import json

from lora_recipes.config import keys, schema

import pytest


@pytest.mark.parametrize(
    ("path", "types"),
    [
        (("learning_rate",), "float"),
        (("datasets", 0, "type", "system_prompt"), "null|str"),
        (("lora_r",), "int|null"),
        (("lora_rank",), None),
        (("datasets", 0, "system_promt"), None),
        (("deepspeed", "zero_optimization", "stage"), "any"),
    ],
)
def test_a_key_has_the_type_that_axolotl_gives_it(path, types):
    assert keys.known_type(path) == types


@pytest.mark.parametrize("key", ["dataset_prepared_path", "lora_r", "tf32", "special_tokens"])
def test_null_unsets_a_key_of_any_type(key):
    assert keys.typed(key, "null", keys.known_type((key,))) is None


@pytest.mark.slow
def test_the_stored_table_is_what_the_installed_axolotl_says():
    assert json.loads(schema.KEYS.read_text())["keys"] == schema.read_installed()
