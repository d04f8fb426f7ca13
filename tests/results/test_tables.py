"""tools/lora_recipes/tables.py and reporting.py: figures as they are written."""

from pathlib import Path

from lora_recipes.report import recipe_tables, systems
from lora_recipes.results import tables


def test_the_mean_loss_weights_a_logged_loss_by_the_steps_that_it_covers() -> None:
    logged = [{"step": 2, "loss": 4.0}, {"step": 3, "loss": 1.0}]
    system = systems.System(Path(), {}, logged)
    assert recipe_tables._mean_loss(system) == 3.0
    assert recipe_tables._mean_loss(systems.System(Path(), {}, [*logged, {"step": 3, "train_loss": 2.5}])) == 2.5


def test_figures_are_written_so_that_they_can_be_read() -> None:
    assert [tables.number(value) for value in (0.12345, 12345, 123.456, None, float("nan"), True)] == [
        "0.1235",
        "12,345",
        "123.46",
        "–",
        "–",
        "–",
    ]
    assert [tables.duration(value) for value in (4.4, 125, 3721, None)] == ["4 s", "2 min 05 s", "1 h 02 min", "–"]
    assert tables.difference({"mean": 0.1, "low": 0.05, "high": 0.15}) == "+0.1000 [+0.0500, +0.1500] *"
    assert tables.difference({"mean": 0.1, "low": -0.1, "high": 0.3}) == "+0.1000 [-0.1000, +0.3000]"
    assert tables.difference(None) == "–"
