"""Every recipe and variant, as rendered, trains on a tiny random model of its own architecture, and what it made works.

Only the base model, the rows, the number of steps and the precision are replaced; the plugin for a CPU is added.
"""

import json
import os
import subprocess
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.models import adapters
from lora_recipes.rendering import ingredients, render

import families
import pytest
import yaml

pytestmark = pytest.mark.slow

PAIRS = [(recipe, variant) for recipe in ingredients.recipe_names() for variant in render.checked_in(recipe)]
CPU = "lora_recipes.plugin.CpuPlugin"
ADAPTERS = ("lora", "qlora", "dora", "rslora")
"""The variants that give an adapter of another kind."""


def kinds(recipe):
    """The variants of a recipe that are merged and asked: one of each kind of adapter."""
    return [name for name in render.checked_in(recipe) if name in ADAPTERS] or [render.checked_in(recipe)[0]]


@pytest.fixture(scope="module")
def replaced(tmp_path_factory, tiny):
    """Settings for a recipe's rendering: a tiny model of its architecture, a dozen rows, two steps, float32."""
    folder, made = tmp_path_factory.mktemp("families"), {".cache/models/SmolLM2-135M-Instruct": tiny}
    for part, count in (("train", 12), ("validation", 4), ("test", 4)):
        lines = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()[:count]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    alpaca = [{"instruction": f"Double {n}.", "input": "as digits" * (n % 2), "output": f"{2 * n}"} for n in range(40)]
    (folder / "alpaca.json").write_text(json.dumps(alpaca))

    def settings(recipe, variant, *more):
        config = yaml.safe_load(render.render(recipe, variant))
        base = config["base_model"]
        if base not in made:
            made[base] = families.tiny_folder(families.family_of(base), folder / base.replace("/", "--"))
        rows = folder / "alpaca.json" if "field_input" in str(config["datasets"]) else folder
        plugins = dict.fromkeys([CPU, *config.get("plugins", [])])
        return [
            *(f"base_model={made[base]}", f"datasets.0.path={rows}", f"test_datasets.0.path={rows}"),
            *("max_steps=2", "bf16=false", "fp16=false", "tf32=null", f"plugins=[{', '.join(plugins)}]"),
            *(f"dataset_prepared_path={folder}/prepared", *more),
            *(["wandb_mode=disabled"] if "wandb_project" in config else []),
        ]

    return settings


@pytest.fixture(scope="module")
def pipe(replaced, axolotl):
    """`tools/render.py … | axolotl train -`, through a real shell."""

    def run(recipe, variant, *more):
        options = [f"--set={setting}" for setting in replaced(recipe, variant, *more)]
        line = ["tools/render.py", "--recipe", recipe, "--variant", variant, *options]
        environment = os.environ | {"PATH": f"{axolotl}:{os.environ['PATH']}"}
        command = ["bash", "-c", '"$@" | axolotl train -', "bash", *line]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)

    return run


@pytest.fixture(scope="module")
def trained(pipe, tmp_path_factory):
    """The run file, kept beside its adapter, of a pair that is trained once."""
    outputs, done = tmp_path_factory.mktemp("outputs"), {}

    def train(recipe, variant):
        if (recipe, variant) not in done:
            folder = outputs / recipe / variant
            result = pipe(recipe, variant, f"output_dir={folder}")
            assert result.returncode == 0, result.stderr[-3000:]
            done[recipe, variant] = folder / "run.yaml"
        return done[recipe, variant]

    train.done = done
    return train


@pytest.mark.parametrize(("recipe", "variant"), PAIRS)
def test_it_trains_two_steps_through_the_pipe(trained, recipe, variant):
    run = runfile.load(trained(recipe, variant))
    adapters.require(run.output_dir, run)
    section = json.loads((run.output_dir / "result.json").read_text())["training"]
    losses = [entry["train_loss"] for entry in section["log_history"] if "train_loss" in entry]
    assert section["metrics"]["steps"] == 2 and len(losses) == 1 and losses[0] > 0
    assert section["trainer"] == ("PlainTrainer" if "peft" in variant.split("+") else "AxolotlTrainer")


def test_no_pair_is_left_out(trained):
    """All that is under recipes/."""
    assert {f"{recipe}/{variant}.yaml" for recipe, variant in PAIRS} == {
        str(path.relative_to(ROOT / "recipes")) for path in (ROOT / "recipes").glob("*/*.yaml")
    }
    assert set(trained.done) == set(PAIRS)


@pytest.mark.parametrize("recipe", ["phi4-mini-african-history", "phi1.5-alpaca-gpt4"])
def test_without_its_kernel_key_a_phi_recipe_ends_in_axolotl_s_own_words(pipe, tmp_path, recipe):
    """Axolotl turns its fused LoRA kernels on where no key names one, and cannot rewrite this attention for them."""
    named = [key for key in yaml.safe_load(render.render(recipe, "lora")) if key.endswith("_kernel")]
    done = pipe(recipe, "lora", f"output_dir={tmp_path}/r/lora", *(f"{key}=null" for key in named))
    assert named and done.returncode == 1
    assert "code not found" in done.stderr, done.stderr[-2000:]


PLAIN = [
    (recipe, variant)
    for recipe, variant in PAIRS
    if "peft" in variant.split("+") and not recipe.endswith("-as-published")  # whose target modules it refuses
]


@pytest.mark.parametrize(("recipe", "variant"), PLAIN)
def test_the_plain_trainer_trains_it(replaced, tool, tmp_path, recipe, variant):
    path = tmp_path / f"{variant}.yaml"
    settings = replaced(recipe, variant, f"output_dir={tmp_path}/{recipe}/{variant}")
    path.write_text(render.render(recipe, variant, tuple(settings)))
    done = tool("train", path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = runfile.load(path)
    adapters.require(run.output_dir, run)
    assert json.loads((run.output_dir / "result.json").read_text())["training"]["metrics"]["steps"] == 2


def result_of(run):
    return json.loads((run.parent / "result.json").read_text())


@pytest.mark.parametrize("recipe", ingredients.recipe_names())
def test_its_adapters_are_merged_verified_asked_and_benchmarked(trained, tool, tmp_path, recipe):
    runs = [trained(recipe, variant) for variant in kinds(recipe)]
    asked = recipe != "lorafrica-axolotl-as-published"  # its rows have a type of Axolotl's own: no prompt is known
    for run in runs:
        done = tool("merge", run, "-o", tmp_path / run.parent.name, *([] if asked else ["--no-verify"]))
        assert done.returncode == 0, done.stderr[-3000:]
        assert list((tmp_path / run.parent.name).glob("*.safetensors"))
    done = tool("benchmark", *runs, "--limit", "4", "--tasks", "african_history_mc")
    assert done.returncode == 0, done.stderr[-3000:]
    assert all({"training", "merge", "benchmark"} <= set(result_of(run)) for run in runs)
    split = "train[90%:]" if "alpaca" in recipe else "test"  # that data set has one split, which the recipe slices
    done = tool("eval", *runs, "--split", split, "--limit", "4", "--max-new-tokens", "4")
    if not asked:
        assert done.returncode == 1 and "datasets.0.type" in done.stderr, done.stderr[-3000:]
        return
    assert done.returncode == 0, done.stderr[-3000:]
    for run in runs:
        assert ("evaluation" if split == "test" else f"evaluation-{split}") in result_of(run)
        answers = [json.loads(line) for line in Path(run.parent / f"answers-{split}.jsonl").read_text().splitlines()]
        assert sum("answer" in answer for answer in answers) == 4
