"""Which systems share a base model in memory."""

from collections.abc import Callable
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.inference import shared_base
from lora_recipes.results import systems


def test_a_4_bit_run_needs_another_base_in_memory_than_its_base_model(run_file: Callable[..., Path]) -> None:
    lora, qlora = (runfile.load(run_file(name)) for name in ("lora", "qlora"))
    base = shared_base.loaded(systems.of_run(qlora, None))
    assert base == shared_base.loaded(systems.of_run(lora, lora.output_dir))
    assert base != shared_base.loaded(systems.of_run(qlora, qlora.output_dir))


def test_systems_on_one_base_are_grouped_in_the_order_of_the_first(run_file: Callable[..., Path]) -> None:
    lora, qlora, peft = (runfile.load(run_file(name)) for name in ("lora", "qlora", "peft"))
    one, two, three = (systems.of_run(run, run.output_dir) for run in (lora, qlora, peft))
    base = systems.of_run(lora, None)
    assert shared_base.groups([base, two, one, three]) == [[base, one, three], [two]]
