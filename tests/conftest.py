"""What the tests share: an environment without network, telemetry or the user's caches, and fixtures."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.models import bundled
from lora_recipes.rendering import render

import families
import forking
import hypothesis
import pytest
import tiny as tiny_model

# Before a test imports the libraries that read them, which nothing above does; subprocesses inherit them.
_HF_HOME = tempfile.mkdtemp(prefix="lora-recipes-tests-")
os.environ |= {
    "HF_HOME": _HF_HOME,  # data sets cached by earlier runs must not answer for changed files
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "AXOLOTL_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "AXOLOTL_DATASET_NUM_PROC": "1",  # a dozen rows: starting processes for them takes longer than the rows do
}
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # A core for each of pytest's workers: more threads than cores wait for each other, tenfold.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

hypothesis.settings.register_profile("tests", database=None, derandomize=True)  # the same examples in every run
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=0, help="faults of tests/project/test_faults.py  [default: a few]")


def pytest_unconfigure() -> None:
    shutil.rmtree(_HF_HOME, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: what is cheap to find is found before the first model is loaded."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the converted SmolLM2."""
    return bundled.ensure_chat_model()


@pytest.fixture(scope="session")
def libraries() -> Iterator[forking.Parent]:
    """A parent that has imported all but Axolotl."""
    parent = forking.Parent(
        *(
            "lora_recipes.training.trainer",
            "lora_recipes.evaluation.evaluate",
            "lora_recipes.merging.verification",
            "lora_recipes.evaluation.lm_eval_run",
        ),
        *("transformers.models.llama.modeling_llama", "deepspeed", "bitsandbytes", "bert_score"),
        *("lm_eval.models.huggingface", "lm_eval.evaluator"),
    )
    yield parent
    parent.close()


@pytest.fixture(scope="session")
def axolotl_libraries() -> Iterator[forking.Parent]:
    """A parent that has imported Axolotl as well."""
    parent = forking.Parent(
        *(
            "lora_recipes.plugin",
            "lora_recipes.training.trainer",
            "axolotl.cli.main",
            "axolotl.cli.train",
            "axolotl.train",
        ),
        *("axolotl.cli.config", "axolotl.common.datasets", "axolotl.loaders", "axolotl.core.builders", "deepspeed"),
        *("axolotl.monkeypatch.lora_kernels", "bitsandbytes", "transformers.models.llama.modeling_llama"),
    )
    yield parent
    parent.close()


@pytest.fixture(scope="session")
def axolotl(axolotl_libraries: forking.Parent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to put first in PATH: its `axolotl` is this environment's, in a fork of the parent."""
    folder = tmp_path_factory.mktemp("bin")
    axolotl_libraries.client(folder / "axolotl", Path(sys.executable).with_name("axolotl"))
    return folder


@pytest.fixture
def tool(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a tool as its user does: `tool("render", "--list", cwd=…, input=…)`; those that import much in a fork."""

    def run(name: str, *args: object, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
        program = ROOT / "tools" / f"{name}.py"
        if name in ("train", "merge", "eval", "benchmark"):
            return request.getfixturevalue("libraries").run([program, *args], cwd=cwd, **options)
        command = [sys.executable, str(program), *map(str, args)]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)  # type: ignore[call-overload]

    return run


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a run file with its outputs in tmp_path: `run_file("peft", "max_steps=2", …)`."""

    def write(variant: str = "lora", *settings: str, recipe: str = "smollm2-african-history") -> Path:
        output_dir = f"output_dir={tmp_path}/outputs/{recipe}/{variant}"
        path = tmp_path / f"{variant}.yaml"
        path.write_text(render.render(recipe, variant, (output_dir, *settings)), encoding="utf-8")
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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family's stand-in, config.json and tokenizer: `model_folder("qwen3")`."""
    folder = tmp_path_factory.mktemp("families")

    def make(family: str) -> Path:
        return folder / family if (folder / family).exists() else families.model_folder(family, folder / family)

    return make
