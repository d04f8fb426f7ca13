"""Recipes and variants become run files."""

import subprocess
import sys

from lora_recipes import ROOT, ingredients, rendering, runfile, yamlfile

import click
import pytest

RECIPES = ingredients.recipe_names()
VARIANTS = rendering.CHECKED_IN


def parsed(recipe, variant, *settings):
    return yamlfile.load(rendering.render(recipe, variant, settings), "rendered").data


def test_the_recipes_are_found():
    assert {"phi4-mini-african-history", "smollm2-african-history"} <= set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checked_in_file_is_what_render_writes_and_a_valid_run_file(recipe, variant):
    path = ROOT / "recipes" / recipe / f"{variant}.yaml"
    assert path.read_text(encoding="utf-8") == rendering.render(recipe, variant)
    assert runfile.load(path).variant == variant


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_header_names_the_file_and_the_command_that_runs_it(recipe, variant):
    head = rendering.render(recipe, variant).splitlines()[:4]
    assert f"axolotl train recipes/{recipe}/{variant}.yaml" in head[2]
    assert f"templates/recipes/{recipe}.yaml + {variant} " in head[3]


DELTAS = {
    "qlora": {"adapter", "load_in_4bit"},
    "ds2": {"deepspeed"},
    "ds3": {"deepspeed"},
    "peft": {"plugins"},
    "peft+ds2": {"plugins", "deepspeed"},
    "peft+qlora": {"plugins", "adapter", "load_in_4bit"},
    "qlora+ds2": {"adapter", "load_in_4bit", "deepspeed"},
}
ON_A_CPU = {"bf16", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", DELTAS)
def test_a_variant_changes_exactly_its_delta(recipe, variant):
    lora, other = parsed(recipe, "lora"), parsed(recipe, variant)
    changed = {key for key in {*lora, *other} if lora.get(key) != other.get(key)}
    on_cpu = ON_A_CPU if ingredients.load_recipe(recipe).facts["cpu"] else set()
    assert changed - on_cpu == DELTAS[variant] | {"output_dir"}


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
    assert done.stdout == rendering.render("phi4-mini-african-history", "ds2")


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
    assert rendering.render(RECIPES[0], "ds2+peft") == rendering.render(RECIPES[0], "peft+ds2")
    assert rendering.render(RECIPES[0], "lora+ds2") == rendering.render(RECIPES[0], "ds2")


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
        (RECIPES[0], "lora", ["plugins=[a"], ["not valid YAML"]),
        (RECIPES[0], "lora", ["seed.x=1"], ["no such key"]),
    ],
)
def test_wrong_usage_is_one_sentence_with_the_remedy(recipe, variant, settings, words):
    with pytest.raises(click.UsageError) as caught:
        rendering.render(recipe, variant, tuple(settings))
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


@pytest.mark.parametrize(("gpus", "steps"), [(1, 4), (2, 2), (4, 1)])
def test_the_global_batch_stays_when_gpus_change(gpus, steps):
    run = parsed("phi4-mini-african-history", "ds2", f"gpus={gpus}")
    assert run["gradient_accumulation_steps"] == steps and run["micro_batch_size"] == 2


def test_an_undefined_name_in_a_template_is_an_error_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "lora.yaml").write_text("variant:\n  words: LoRA\nseed: {{ sede }}\n")
    monkeypatch.setattr(rendering, "VARIANTS", tmp_path)
    with pytest.raises(click.ClickException, match=r"lora.yaml, line 3: 'sede' is undefined"):
        rendering.render(RECIPES[0], "lora")


def test_a_template_expression_in_ingredients_is_an_error_with_its_line(tmp_path):
    text = (ingredients.RECIPES / f"{RECIPES[0]}.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("seed: 42", "seed: {{ seed }}"))
    line = text[: text.index("seed: 42")].count("\n") + 1
    with pytest.raises(click.ClickException, match=rf"mine.yaml, line {line}: .*not a template"):
        rendering.render(str(tmp_path / "mine.yaml"), "lora")


def test_ingredients_of_ones_own_render(tmp_path):
    text = (ingredients.RECIPES / "smollm2-african-history.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("lora_r: 16", "lora_r: 4"))
    run = parsed(str(tmp_path / "mine.yaml"), "lora")
    assert run["lora_r"] == 4 and run["output_dir"] == "outputs/mine/lora"


def test_deepspeed_is_inlined_on_request():
    inline = yamlfile.load(rendering.render(RECIPES[0], "ds2", inline_deepspeed=True), "f").data
    assert inline["deepspeed"]["zero_optimization"]["stage"] == 2


def test_check_fails_with_a_diff_when_a_checked_in_file_has_drifted(tool, tmp_path, monkeypatch):
    path = ROOT / "recipes" / RECIPES[0] / "lora.yaml"
    kept = path.read_text()
    try:
        path.write_text(kept.replace("seed: 42", "seed: 43"))
        done = tool("render", "--check")
    finally:
        path.write_text(kept)
    assert done.returncode == 1 and "-seed: 43" in done.stdout and "+seed: 42" in done.stdout
    assert tool("render", "--check").returncode == 0


def test_editing_the_data_changes_where_axolotl_caches_them(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    settings = (f"datasets.0.path={tmp_path}",)
    before = parsed("smollm2-african-history", "lora", *settings)["dataset_prepared_path"]
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "c"}\n')
    assert parsed("smollm2-african-history", "lora", *settings)["dataset_prepared_path"] != before
