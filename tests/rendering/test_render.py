"""Recipes and variants become run files."""

import os
import shutil
import subprocess
import sys

from lora_recipes import ROOT
from lora_recipes.config import runfile, yamlfile
from lora_recipes.rendering import ingredients, render

import click
import families
import pytest
from rendered import parsed

RECIPES = ingredients.recipe_names()
FILES = [(recipe, variant) for recipe in RECIPES for variant in render.checked_in(recipe)]
KERNELS = {"lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"}


def test_the_files_under_recipes_are_those_of_the_templates():
    assert len(RECIPES) >= 10 and all(render.checked_in(recipe) for recipe in RECIPES)
    found = {path.relative_to(ROOT / "recipes") for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {str(path) for path in found} == {f"{recipe}/{variant}.yaml" for recipe, variant in FILES}


@pytest.mark.parametrize(("recipe", "variant"), FILES)
def test_the_checked_in_file_is_what_render_writes_and_a_valid_run_file(recipe, variant):
    path = ROOT / "recipes" / recipe / f"{variant}.yaml"
    assert path.read_text(encoding="utf-8") == render.render(recipe, variant)
    assert runfile.load(path).variant == variant


@pytest.mark.parametrize(("recipe", "variant"), FILES)
def test_the_header_names_the_file_and_the_commands_that_run_it(recipe, variant):
    lines = render.render(recipe, variant).splitlines()
    head = lines[next(n for n, line in enumerate(lines) if line.startswith("# run:")) :]
    path = f"recipes/{recipe}/{variant}.yaml"
    assert head[0] == f"# run:  axolotl train {path}"
    if "peft" in variant and not recipe.endswith("as-published"):  # the plain trainer refuses their target modules
        assert head.pop(1) == f"# or:   tools/train.py {path}   (needs no Axolotl)"
    assert f"templates/recipes/{recipe}.yaml + {variant} " in head[1]


def test_a_file_with_settings_of_ones_own_names_the_command_that_renders_and_trains_it():
    settings = ("datasets.0.type.system_prompt=It's\n\t\\brief: \N{EN DASH}", "gpus=2", "seed=3")
    text = render.render("phi4-mini-african-history", "ds2", settings)
    (command,) = [line[7:].strip() for line in text.splitlines() if line.startswith("# run:")]
    rendered, train = command.split(" | ")
    assert train == "axolotl train - --launcher torchrun -- --nproc-per-node=2"
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {rendered}"], capture_output=True, text=True).stdout.split(
        "\0"
    )
    options = [part for setting in settings for part in ("--set", setting)]
    assert words[:-1] == ["tools/render.py", "--recipe", "phi4-mini-african-history", "--variant", "ds2", *options]


@pytest.mark.parametrize(
    ("settings", "launcher"), [((), ""), (("gpus=2",), " --launcher torchrun -- --nproc-per-node=2")]
)
def test_a_file_that_is_written_names_itself_in_its_commands(tool, tmp_path, settings, launcher):
    path = tmp_path / "my run.yaml"
    options = [part for setting in settings for part in ("--set", setting)]
    assert tool("render", "--variant", "peft", *options, "-o", str(path)).returncode == 0
    commands = [line[8:] for line in path.read_text().splitlines() if line.startswith(("# run:", "# or:"))]
    assert commands == [f"axolotl train '{path}'{launcher}", f"tools/train.py '{path}'   (needs no Axolotl)"]


def test_a_recipe_may_name_the_variants_that_are_kept_of_it(tmp_path, tool):
    text = (ingredients.RECIPES / f"{RECIPES[0]}.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("recipe:\n", "recipe:\n  variants: [lora, ds2+peft, lora+qlora]\n", 1))
    assert render.checked_in(str(mine)) == ("lora", "peft+ds2", "qlora")
    listed = tool("render", "--list").stdout.splitlines()
    for recipe in RECIPES:
        shown = next(line for line in listed if recipe in line.split())
        own = ingredients.load_recipe(recipe).facts["variants"]
        assert shown.endswith(f"; only {' '.join(own)}") if own else "; only" not in shown


@pytest.mark.parametrize(
    ("variants", "words"),
    [("[lora, 3]", "expected a list of texts"), ("lora", "expected list"), ("[sd2]", "did you mean 'ds2'")],
)
def test_a_mistake_in_the_variants_of_a_recipe_is_said(variants, words, tmp_path):
    text = (ingredients.RECIPES / f"{RECIPES[0]}.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("recipe:\n", f"recipe:\n  variants: {variants}\n", 1))
    with pytest.raises(click.ClickException) as caught:
        render.checked_in(str(tmp_path / "mine.yaml"))
    assert words in caught.value.message


DELTAS = {
    "qlora": {"adapter", "load_in_4bit"},
    "ds2": {"deepspeed"},
    "ds3": {"deepspeed"},
    "peft": {"plugins"},
    "peft+ds2": {"plugins", "deepspeed"},
    "peft+qlora": {"plugins", "adapter", "load_in_4bit"},
    "qlora+ds2": {"adapter", "load_in_4bit", "deepspeed"},
    "dora": {"peft_use_dora"},
    "rslora": {"peft_use_rslora"},
}


def test_every_variant_has_a_delta_under_test():
    assert DELTAS.keys() | {"lora"} >= {variant for _, variant in FILES}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", DELTAS)
def test_a_variant_changes_exactly_its_delta(recipe, variant):
    lora, other = parsed(recipe, "lora"), parsed(recipe, variant)
    changed = {key for key in {*lora, *other} if lora.get(key) != other.get(key)}
    cpu = ingredients.load_recipe(recipe).facts["cpu"]
    forced = KERNELS | {"bf16"} if cpu else KERNELS if variant == "dora" else set()
    assert changed - forced == DELTAS[variant] | {"output_dir"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", ["dora", "qlora+dora", "dora+ds2"])
def test_dora_is_without_the_fused_kernels_that_keep_an_old_norm(recipe, variant):
    run = parsed(recipe, variant)
    assert {key: run[key] for key in KERNELS} == dict.fromkeys(KERNELS, False)


AXOLOTL = """
import os, sys, yaml
from axolotl.cli.config import prepare_plugins
from axolotl.monkeypatch.lora_kernels import patch_self_attn_lora
from axolotl.utils.config import validate_config
from axolotl.utils.dict import DictDefault
gpu = dict(bf16=True, fp8=False, tf32=True, n_gpu=1, compute_capability="sm_80")
for path, base in zip(sys.argv[1::2], sys.argv[2::2]):
    if child := os.fork():  # a process each: the rewriting changes the model's class
        os.waitpid(child, 0)
        continue
    given = yaml.safe_load(open(path)) | {"base_model": base, "axolotl_config_path": path}
    try:
        prepare_plugins(DictDefault(given))
        made = validate_config(DictDefault(given), capabilities=gpu, env_capabilities={"torch_version": "2.13.0"})
        lost = [key for key in given if key not in made]
        if made.lora_qkv_kernel or made.lora_o_kernel:  # as axolotl/loaders/patch_manager.py does
            patch_self_attn_lora(made)
        print("VALID" if not lost else f"LOST {lost} in", path, flush=True)
    except Exception as error:
        print("REFUSED", path, error, flush=True)
    os._exit(0)
"""


def stand_in(recipe, folder):
    """The stand-in for a recipe's base model, made in the folder unless it is there."""
    family = families.family_of(ingredients.load_recipe(recipe).run["base_model"])
    return folder / family if (folder / family).exists() else families.model_folder(family, folder / family)


@pytest.mark.slow
def test_axolotl_takes_every_checked_in_file_on_a_gpu_and_its_fused_kernels_take_the_model(tmp_path):
    paths = {f"recipes/{recipe}/{variant}.yaml": stand_in(recipe, tmp_path) for recipe, variant in FILES}
    for recipe in [recipe for recipe, variant in FILES if variant == "dora"]:  # what is composed by hand
        for variant in ("qlora+dora", "dora+rslora", "dora+ds2", "dora+ds3", "peft+dora", "peft+rslora"):
            path = tmp_path / f"{recipe}-{variant}.yaml"
            path.write_text(render.render(recipe, variant))
            paths[str(path)] = stand_in(recipe, tmp_path)
    command = [sys.executable, "-c", AXOLOTL, *(str(part) for pair in paths.items() for part in pair)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = [line for line in done.stdout.splitlines() if line.startswith(("VALID", "LOST", "REFUSED"))]
    assert found == [f"VALID {path}" for path in paths], done.stderr[-2000:]


def test_rendering_is_the_same_to_the_byte():
    texts = {
        subprocess.run([sys.executable, "tools/render.py", "--variant", "ds2"], cwd=cwd, capture_output=True).stdout
        for cwd in (ROOT,)
        for _ in range(2)
    }
    assert len(texts) == 1 and len(texts.pop()) > 1000


def test_render_works_from_any_directory(tmp_path):
    script = str(ROOT / "tools" / "render.py")
    done = subprocess.run([sys.executable, script, "--variant", "ds2"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == render.render("phi4-mini-african-history", "ds2")


def test_render_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['render.py', '--variant', 'ds2']; sys.path.insert(0, 'tools'); import runpy\n"
        "try: runpy.run_path('tools/render.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'axolotl', 'datasets', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_variants_compose_in_any_order():
    assert render.render(RECIPES[0], "ds2+peft") == render.render(RECIPES[0], "peft+ds2")
    assert render.render(RECIPES[0], "lora+ds2") == render.render(RECIPES[0], "ds2")


def test_deepspeed_is_inlined_on_request(tool):
    inline = yamlfile.load(render.render(RECIPES[0], "ds2", inline_deepspeed=True), "f").data
    assert inline["deepspeed"]["zero_optimization"]["stage"] == 2
    refused = tool("render", "--inline-deepspeed")
    assert refused.returncode == 2 and "use it with ds2 or ds3" in refused.stderr


def test_deepspeed_is_inlined_on_both_sides_of_a_difference(tool):
    shown = tool("render", "--variant", "ds2", "--diff", "ds3", "--inline-deepspeed").stdout.splitlines()
    assert {"-    stage: 2", "+    stage: 3"} <= set(shown) and "     reduce_bucket_size: auto" in shown
    assert "+    stage: 2" in tool("render", "--diff", "ds2", "--inline-deepspeed").stdout.splitlines()


def test_check_fails_with_a_diff_when_a_checked_in_file_has_drifted(tmp_path):
    for name in ("recipes", "templates", "tools", "deepspeed_configs", "data"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    command = [sys.executable, str(tmp_path / "tools" / "render.py"), "--check"]
    assert subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": ""}).returncode == 0
    path = tmp_path / "recipes" / RECIPES[0] / "lora.yaml"
    path.write_text(path.read_text().replace("seed: 42", "seed: 43"))
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert done.returncode == 1 and "-seed: 43" in done.stdout and "+seed: 42" in done.stdout


def test_editing_the_data_changes_where_axolotl_caches_them(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    settings = (f"datasets.0.path={tmp_path}",)
    before = parsed("smollm2-african-history", "lora", *settings)["dataset_prepared_path"]
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "c"}\n')
    assert parsed("smollm2-african-history", "lora", *settings)["dataset_prepared_path"] != before
