"""tools/lora_recipes/tracking.py: a login that is missing is found before a model is loaded."""

from collections.abc import Callable
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.results import tracking

import click
import pytest


def test_without_a_key_online_tracking_fails_before_a_model_is_loaded(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    run = runfile.load(run_file("lora", "wandb_project=history"))
    with pytest.raises(click.ClickException, match="no W&B login is found; run `wandb login`"):
        tracking.require_login(run)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.require_login(run)
    assert not tracking.wanted(runfile.load(run_file("lora")))
