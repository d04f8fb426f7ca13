"""What the tests share: an environment without network, telemetry or the user's caches, and fixtures."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tiny as tiny_model

# Before anything imports the libraries that read them; subprocesses inherit them.
_HF_HOME = tempfile.mkdtemp(prefix="lora-recipes-tests-")
os.environ |= {
    "HF_HOME": _HF_HOME,  # data sets cached by earlier runs must not answer for changed files
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
}

from lora_recipes import ROOT, embedded, rendering, runfile  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("tests", database=None, derandomize=True)  # the same examples in every run
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=0, help="faults of tests/test_faults.py  [default: a few]")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: what is cheap to find is found before the first model is loaded."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the converted SmolLM2."""
    return embedded.ensure_chat_model()


@pytest.fixture
def tool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a tool as its user does: `tool("render", "--list", cwd=…, input=…)`."""

    def run(name: str, *args: object, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a run file with its outputs in tmp_path: `run_file("peft", "max_steps=2", …)`."""

    def write(variant: str = "lora", *settings: str, recipe: str = "smollm2-african-history") -> Path:
        output_dir = f"output_dir={tmp_path}/outputs/{recipe}/{variant}"
        path = tmp_path / f"{variant}.yaml"
        path.write_text(rendering.render(recipe, variant, (output_dir, *settings)), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def tiny(embedded_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama with SmolLM2's tokenizer."""
    return tiny_model.save_model(tmp_path_factory.mktemp("models") / "tiny", embedded_model)


@pytest.fixture
def trained(run_file: Callable[..., Path], tiny: Path) -> Callable[..., Path]:
    """Write a run file on the tiny model, in float32, with an adapter in its output folder, random by its seed."""

    def make(variant: str = "lora", *settings: str, seed: int = 1) -> Path:
        path = run_file(variant, f"base_model={tiny}", "bf16=false", *settings)
        tiny_model.save_adapter(tiny, runfile.load(path).output_dir, seed)
        return path

    return make
