"""What the tools share. Imported first by one of the project's scripts, it makes sure that .venv is in use."""

import os
import signal
import sys

if os.path.dirname(os.path.realpath(sys.argv[0])) == os.path.dirname(os.path.dirname(os.path.realpath(__file__))) or (
    os.path.basename(sys.argv[0]) == "axolotl"
):  # the program is a script of the project; what it imports takes a tenth of a second
    from lora_recipes.support import ctrl_c

    signal.signal(signal.SIGINT, ctrl_c.abort)

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: templates/, recipes/, deepspeed_configs/, data/ and results/ are here."""

# Telemetry is off in everything we start, and a fork after tokenizing must not warn or hang.
for _name in ("AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _use_project_environment() -> None:
    """Start a script of tools/ again in .venv, where that is there and this Python lacks some of the packages.

    Other programs that import this package keep their process and their Python.
    """
    packages = ("click", "jinja2", "yaml", "torch", "transformers", "peft", "datasets")
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if not missing or Path(sys.argv[0]).resolve().parent != ROOT / "tools":
        return
    python = ROOT / ".venv" / "bin" / "python"
    if python.exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve():
        os.execv(python, [str(python), *sys.argv])
    if {"click", "jinja2", "yaml"} & set(missing):
        sys.exit("lora-recipes is not set up here: run `make setup`, then `. .venv/bin/activate`.")


_use_project_environment()
