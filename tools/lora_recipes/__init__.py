"""What the tools share. Importing it first makes sure the project's environment is the one in use."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: templates/, recipes/, deepspeed_configs/, data/ and results/ are here."""

# Telemetry is off in everything we start, and a fork after tokenizing must not warn or hang.
for _name in ("AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _use_project_environment() -> None:
    """Start the same command again in .venv when this Python lacks the project's packages."""
    if all(importlib.util.find_spec(name) for name in ("click", "jinja2", "yaml")):
        return
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix) != ROOT / ".venv":
        os.execv(python, [str(python), *sys.argv])
    sys.exit("lora-recipes is not set up here: run `make setup`, then `. .venv/bin/activate`.")


_use_project_environment()
