"""Which systems share a base model in memory."""

from collections.abc import Callable
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.inference import shared_base
from lora_recipes.results import systems

import tiny as tiny_model


def test_a_4_bit_run_needs_another_base_in_memory_than_its_base_model(trained: Callable[..., Path]) -> None:
    lora, qlora = (runfile.load(trained(name)) for name in ("lora", "qlora"))
    base = shared_base.loaded(systems.of_base(qlora, None))
    assert base == shared_base.loaded(systems.of_run(lora, lora.output_dir))
    assert base != shared_base.loaded(systems.of_run(qlora, qlora.output_dir))


def test_systems_on_one_base_are_grouped_in_the_order_of_the_first(trained: Callable[..., Path]) -> None:
    lora, qlora, peft = (runfile.load(trained(name)) for name in ("lora", "qlora", "peft"))
    one, two, three = (systems.of_run(run, run.output_dir) for run in (lora, qlora, peft))
    base = systems.of_base(lora, None)
    assert shared_base.groups([base, two, one, three]) == [[base, one, three], [two]]


def test_an_adapter_that_changes_its_base_has_one_of_its_own(trained: Callable[..., Path], tiny: Path) -> None:
    plain, pissa, biases = (runfile.load(trained(name)) for name in ("lora", "peft", "dora"))
    tiny_model.save_adapter(tiny, pissa.output_dir, init_lora_weights="pissa")
    tiny_model.save_adapter(tiny, biases.output_dir, bias="lora_only")
    base = systems.of_base(plain, None)
    chosen = [base, *(systems.of_run(run, run.output_dir) for run in (plain, pissa, biases))]
    assert shared_base.groups(chosen) == [chosen[:2], [chosen[2]], [chosen[3]]]
