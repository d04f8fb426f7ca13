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

RECIPES = ingredients.recipe_names()
FILES = [(recipe, variant) for recipe in RECIPES for variant in render.checked_in(recipe)]
KERNELS = {"lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"}


def parsed(recipe, variant, *settings):
    return yamlfile.load(render.render(recipe, variant, settings), "rendered").data


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


@pytest.mark.parametrize(
    ("recipe", "variant", "settings", "words"),
    [
        ("phi4-mini-africa-history", "lora", [], ["did you mean 'phi4-mini-african-history'"]),
        ("nowhere/mine.yaml", "lora", [], ["no ingredients file nowhere/mine.yaml"]),
        (RECIPES[0], "sd2", [], ["no variant 'sd2'", "did you mean 'ds2'"]),
        (RECIPES[0], "ds2+ds3", [], ["makes no sense", "choose ds2 or ds3"]),
        (RECIPES[0], "qlora+ds3", [], ["makes no sense", "use qlora+ds2"]),
        (RECIPES[0], "ds2+ds2", [], ["twice"]),
        (RECIPES[0], "", [], ["no variant ''"]),
        (RECIPES[0], "lora", ["learning_rte=1"], ["learning_rte", "did you mean 'learning_rate'"]),
        (RECIPES[0], "lora", ["datasets.0.type.system_promt=x"], ["did you mean 'datasets.0.type.system_prompt'"]),
        (RECIPES[0], "lora", ["datasets.4.path=x"], ["no entry 4"]),
        (RECIPES[0], "lora", ["micro_batch_size=many"], ["expected int", "'many'"]),
        (RECIPES[0], "lora", ["learning_rate"], ["expected key=value"]),
        (RECIPES[0], "lora", ["gpus=0"], ["from 1"]),
        (RECIPES[0], "lora", ["gpus=3"], ["global batch", "divides"]),
        (RECIPES[0], "lora", ["micro_batch_size=0"], ["global batch", "divides"]),
        (RECIPES[0], "lora", ["plugins=[a"], ["not valid YAML"]),
        (RECIPES[0], "lora", ["seed.x=1"], ["no such key"]),
    ],
)
def test_wrong_usage_is_one_sentence_with_the_remedy(recipe, variant, settings, words):
    with pytest.raises(click.UsageError) as caught:
        render.render(recipe, variant, tuple(settings))
    assert all(word in caught.value.message for word in words), caught.value.message


def test_set_gives_a_value_the_type_of_its_key():
    run = parsed(
        "smollm2-african-history", "lora", "learning_rate=1e-4", "max_steps=3", "bf16=false", "wandb_project=123",
        "lora_target_modules=[q_proj]", "datasets.0.type.system_prompt=Be brief: no", "dataset_prepared_path=",
    )  # fmt: skip
    assert run["learning_rate"] == 1e-4 and run["max_steps"] == 3 and run["bf16"] is False
    assert run["wandb_project"] == "123" and run["lora_target_modules"] == ["q_proj"]
    assert run["datasets"][0]["type"]["system_prompt"] == "Be brief: no"
    assert run["dataset_prepared_path"] == ""


def test_set_of_one_data_set_leaves_the_other_alone():
    run = parsed("smollm2-african-history", "lora", "datasets.0.type.system_prompt=x")
    assert run["test_datasets"][0]["type"]["system_prompt"] != "x"


@pytest.mark.parametrize(
    ("recipe", "gpus", "micro", "steps"),
    [
        ("phi4-mini-african-history", 1, 8, 1),
        ("phi4-mini-african-history", 4, 2, 1),
        ("mistral-african-history", 1, 4, 2),
        ("mistral-african-history", 2, 4, 1),
        ("phi1.5-alpaca-gpt4", 1, 2, 8),
        ("phi1.5-alpaca-gpt4", 4, 2, 2),
    ],
)
def test_the_global_batch_stays_when_gpus_change(recipe, gpus, micro, steps):
    run = parsed(recipe, "ds2", f"gpus={gpus}")
    assert (run["micro_batch_size"], run["gradient_accumulation_steps"]) == (micro, steps)
    assert micro * steps * gpus == ingredients.load_recipe(recipe).facts["global_batch"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_micro_batches_of_every_recipe_make_its_global_batch(recipe):
    facts = ingredients.load_recipe(recipe).facts
    for variant in render.checked_in(recipe):
        run = parsed(recipe, variant)
        assert run["micro_batch_size"] * run["gradient_accumulation_steps"] * facts["gpus"] == facts["global_batch"]


def test_a_variant_is_one_file(tmp_path, monkeypatch):
    shutil.copytree(render.VARIANTS, tmp_path / "variants")
    (tmp_path / "variants" / "packed.yaml").write_text("variant:\n  words: packed\nsample_packing: true\n")
    monkeypatch.setattr(render, "VARIANTS", tmp_path / "variants")
    render.variants.cache_clear()
    try:
        assert render.checked_in(RECIPES[0])[-1] == "packed" and list(render.variants())[-1] == "packed"
        assert parsed(RECIPES[0], "packed+qlora")["sample_packing"] is True
        assert ", QLoRA + packed." in render.render(RECIPES[0], "packed+qlora")
    finally:
        render.variants.cache_clear()


def test_ingredients_of_ones_own_render(tmp_path):
    text = (ingredients.RECIPES / "smollm2-african-history.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("lora_r: 16", "lora_r: 4"))
    run = parsed(str(tmp_path / "mine.yaml"), "lora")
    assert run["lora_r"] == 4 and run["output_dir"] == "outputs/mine/lora"


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
