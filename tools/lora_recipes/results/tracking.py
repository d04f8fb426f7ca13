"""Scores sent to Weights & Biases, where a run file asks for it."""

import contextlib
import io
import os
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.results.systems import System


def wanted(run: RunFile) -> bool:
    return bool(run.wandb_project or run.config.get("wandb_mode"))


def _mode(run: RunFile) -> Any:
    return os.environ.get("WANDB_MODE") or run.config.get("wandb_mode") or "online"


def require_login(run: RunFile) -> None:
    """Fail before the work when W&B is wanted online and no key is there."""
    if not wanted(run) or _mode(run) in ("offline", "dryrun", "disabled"):
        return
    import wandb

    with contextlib.redirect_stderr(io.StringIO()):  # it calls its own attribute deprecated, without another for this
        key_found = bool(wandb.api.api_key)
    if not key_found:
        key = "wandb_project" if run.wandb_project else "wandb_mode"
        raise run.error(key, "no W&B login is found; run `wandb login`, or set WANDB_MODE=offline.")


def name_project(run: RunFile) -> None:
    """Tell transformers' W&B callback, which reads the environment, what the run file says."""
    if run.wandb_project:
        os.environ["WANDB_PROJECT"] = run.wandb_project
        os.environ["WANDB_MODE"] = _mode(run)


def log(system: System, kind: str, metrics: dict[str, Any]) -> None:
    """Log one system's metrics, where it is wanted, as a W&B run: `evaluation/bertscore_f1`, its `_low` and `_high`.

    Raises click.ClickException when W&B does not take them.
    """
    run, name = system.run, system.name
    if not wanted(run):
        return
    import wandb

    flat: dict[str, float] = {}
    for metric, value in metrics.items():
        if isinstance(value, dict):
            flat |= {f"{kind}/{metric}": value["mean"]}
            flat |= {f"{kind}/{metric}_{end}": value[end] for end in ("low", "high") if value[end] is not None}
        else:
            flat[f"{kind}/{metric}"] = value
    try:
        logged = wandb.init(
            project=run.wandb_project or run.recipe,
            entity=run.config.get("wandb_entity"),
            name=f"{name}-{kind}",
            group=run.recipe,
            job_type=kind,
            mode=_mode(run),
            config={"recipe": run.recipe, "variant": name, "run_file_sha256": run.sha256},
            reinit="finish_previous",
        )
        logged.log(flat)
        logged.finish()
    except wandb.errors.Error as error:
        raise run.error("wandb_project", f"W&B did not take the scores: {error}; the result file has them.") from None
