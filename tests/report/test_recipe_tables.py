"""The figures of the report that are computed from what was logged."""

from pathlib import Path
from typing import Any

from lora_recipes.report import recipe_tables
from lora_recipes.results.systems import System


def trained(*logged: dict[str, Any]) -> System:
    system = System("recipe", "lora", Path("absent"))
    system.result["training"] = {"log_history": list(logged)}
    return system


def test_the_mean_loss_weights_a_logged_loss_by_the_steps_that_it_covers() -> None:
    logged = [{"step": 2, "loss": 4.0}, {"step": 3, "loss": 1.0}]
    assert recipe_tables._mean_loss(trained(*logged)) == 3.0
    assert recipe_tables._mean_loss(trained(*logged, {"step": 3, "train_loss": 2.5})) == 2.5
