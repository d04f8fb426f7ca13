"""Secrets in the file, which are never repeated; code and weights that run on loading; logins that are missing."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.findings import Finding
from lora_recipes.config import scrubbing, yamlfile
from lora_recipes.results import tracking

import click

_NAME = re.compile(
    r"(?:.*_)?(?:secret|password|passwd|api_?key|secret_key)s?"
    r"|(?:.*_)?(?:hf|hub|auth|access|api|bot|bearer|github|gitlab|wandb|mlflow|tracking)_token|token",
    re.IGNORECASE,
)
_NO_SECRET = re.compile(r"[$<{].*|your.*|x+|\*+|true|false|none|null|changeme", re.IGNORECASE)
_PICKLED = (".bin", ".pt", ".pth")
_NO_WEIGHTS = ("training_args", "optimizer", "scheduler", "rng_state")


def check(checked: CheckedRun) -> None:
    """Tokens anywhere in the text, trust_remote_code, pickled weights, and no login where one is needed."""
    _tokens(checked)
    _remote_code(checked)
    _pickled(checked)
    _hub_login(checked)
    _tracker_login(checked)


def _tokens(checked: CheckedRun) -> None:
    keys = {line: yamlfile.dotted(path) for path, line in checked.given.document.lines.items()}
    said: dict[int, list[str]] = {}
    for line, text in enumerate(checked.given.text.splitlines(), 1):
        for kind, secret in scrubbing.secrets_in(text):
            said.setdefault(line, []).append(secret)
            _found(checked, keys.get(line, f"line {line}"), line, kind, len(secret))
    for path, value in _texts(checked.config, ()):
        line = checked.given.document.line(path)
        named = _NAME.fullmatch(str(path[-1]))
        if named and value and not _NO_SECRET.fullmatch(value) and not any(one in value for one in said.get(line, [])):
            _found(checked, yamlfile.dotted(path), line, "a text under a key for a secret", len(value))


def _texts(node: Any, path: yamlfile.Path) -> Iterator[tuple[yamlfile.Path, str]]:
    """All text values below a node with their paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _texts(value, (*path, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, (*path, index))
    elif isinstance(node, str) and path:
        yield path, node.strip()


def _found(checked: CheckedRun, key: str, line: int, kind: str, length: int) -> None:
    finding = Finding(
        "error",
        "secret",
        key,
        line,
        f"{kind}, {length} characters" if kind != "a private key" else kind,
        "no secret in a file that is copied, committed and logged",
        "delete it here, revoke it where it was issued, and give the new one through the environment or a login",
    )
    checked.report.findings.append(finding)


def _remote_code(checked: CheckedRun) -> None:
    places = [("trust_remote_code", checked.config)]
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        value = checked.config.get(key)
        for index, entry in enumerate(value if isinstance(value, list) else []):
            places.append((f"{key}.{index}.trust_remote_code", entry))
    for key, holder in places:
        if isinstance(holder, dict) and holder.get("trust_remote_code") is True:
            checked.error(
                "trust-remote-code",
                key,
                "true: code from the repository runs with your rights and your tokens",
                "false",
                "delete it if transformers knows this model; otherwise read the code and pin its revision",
            )


def _pickled(checked: CheckedRun) -> None:
    for key in ("base_model", "lora_model_dir"):
        folder = checked.config.get(key)
        path = checked.given.path(folder) if isinstance(folder, str) and "://" not in folder else Path()
        if not isinstance(folder, str) or not os.path.isdir(path):
            continue
        files = [file for file in sorted(path.iterdir()) if not file.name.startswith(_NO_WEIGHTS)]
        pickled = [file.name for file in files if file.suffix in _PICKLED]
        if pickled and not any(file.suffix in (".safetensors", ".gguf") for file in files):
            checked.error(
                "pickled-weights",
                key,
                f"{folder} holds {pickled[0]} and no safetensors: loading a pickle can run any code",
                "weights as *.safetensors",
                "take the safetensors revision of the model, or convert the weights on a machine without secrets",
            )
    if checked.config.get("save_safetensors") is False:
        checked.error(
            "pickled-weights",
            "save_safetensors",
            "false: the weights would be saved as pickles",
            "safetensors",
            "delete the key",
        )


def _hub_login(checked: CheckedRun) -> None:
    """Axolotl pushes to hub_model_id at each save and at the end, whatever hub_strategy says."""
    target = checked.config.get("hub_model_id")
    if not isinstance(target, str) or not target:
        return
    try:
        from huggingface_hub import get_token
    except ImportError:
        return checked.report.skip("hub login", "huggingface_hub is not installed here")
    if not get_token():
        checked.error(
            "hub-login",
            "hub_model_id",
            f"the adapter is to be pushed to {target}, and there is no Hugging Face login here",
            "a login, or no push",
            "run `hf auth login` or set HF_TOKEN where it trains, or delete hub_model_id",
        )
    return None


def _tracker_login(checked: CheckedRun) -> None:
    if tracking.wanted(checked.given):
        try:
            tracking.require_login(checked.given)
        except click.ClickException:
            checked.error(
                "tracker-login",
                "wandb_project" if checked.config.get("wandb_project") else "wandb_mode",
                "scores are to go to Weights & Biases, and no login is here: Axolotl fails after loading the model",
                "a login, or wandb_mode: offline",
                "run `wandb login`, or write wandb_mode: offline",
            )
        except Exception as error:  # not installed, or a settings file that it cannot read
            checked.report.skip("tracker login", f"wandb cannot be asked ({type(error).__name__})")
