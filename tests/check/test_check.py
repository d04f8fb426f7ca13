"""The pre-flight as a whole: what it finds in wrong run files, and that it finds nothing in ours."""

import json
import os
import shutil
from pathlib import Path

from lora_recipes import ROOT
from lora_recipes.check import preflight
from lora_recipes.rendering import ingredients, render
from lora_recipes.support import processes

import families
import minimal
import pytest

pytestmark = pytest.mark.slow

SMALL = "smollm2-african-history"
PUBLISHED = [name for name in ingredients.recipe_names() if name.endswith("as-published")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: families.model_folder(name, folder / name) for name in families.NAMES}


@pytest.fixture
def checked(axolotl, folders):
    """The report on a run file, with the stand-in folder of its recipe's model."""

    def check(path, recipe=SMALL):
        base = ingredients.load_recipe(recipe).run["base_model"]
        stand_in = None if base.startswith(".cache") else folders[families.family_of(base)]
        return preflight.run(path, axolotl, stand_in)[0].report

    return check


def errors(report):
    return {(finding.check, finding.key) for finding in report.findings if finding.severity == "error"}


def of(report, check):
    (finding,) = [one for one in report.findings if one.check == check]
    return finding


FILES = [
    (recipe, variant)
    for recipe in ingredients.recipe_names()
    if recipe not in PUBLISHED
    for variant in render.checked_in(recipe)
]


def test_every_recipe_is_found():
    assert len(FILES) >= 7 * 9 and len(PUBLISHED) >= 3


@pytest.mark.parametrize(("recipe", "variant"), FILES)
def test_our_recipes_have_no_error_and_their_targets_prompt_and_masks_were_checked(
    checked, embedded_model, recipe, variant
):
    report = checked(ROOT / "recipes" / recipe / f"{variant}.yaml", recipe)
    assert not errors(report), list(report.as_text())
    assert all(one["modules"] for one in report.facts["target_modules"]["by_name"].values())
    assert report.facts["masks"]["rows_without_eos"] == 0 and report.facts["axolotl"] is True


def test_the_published_peft_runs_train_o_proj_alone_and_no_end_of_turn(checked):
    """Defects S1 and S5 of the reference projects; the figures are those that they printed."""
    for variant in ("peft", "peft+ds2"):
        report = checked(ROOT / f"recipes/lorafrica-peft-as-published/{variant}.yaml", "lorafrica-peft-as-published")
        targets = of(report, "target-modules")
        assert "q_proj, v_proj and k_proj match no layer" in targets.found
        assert "1,572,864 of 3,837,594,624" in targets.found and "qkv_proj" in targets.expected
        assert "<|end|>" in of(report, "end-of-turn").found and "<|endoftext|>" in of(report, "pad-token").found


def test_the_published_axolotl_runs_are_trained_on_another_prompt_than_asked(checked, monkeypatch):
    """Defects S1, S3 and S4, and packed rows that see each other."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for variant in ("lora", "ds2"):
        name = "lorafrica-axolotl-as-published"
        report = checked(ROOT / f"recipes/{name}/{variant}.yaml", name)
        parity = of(report, "prompt-parity")
        assert "trained 'SYSTEM: Below is an instruction" in parity.found
        assert "<|user|>" in parity.found and "<|assistant|>" in parity.found
        assert "1,572,864 of 3,837,594,624" in of(report, "target-modules").found
        assert ("packing-attention", "sample_packing") in errors(report)


def test_the_published_phi_1_5_run_trains_the_mlp_alone(checked):
    """Defect S2."""
    name = "phi1.5-alpaca-gpt4-as-published"
    targets = of(checked(ROOT / f"recipes/{name}/peft+qlora.yaml", name), "target-modules")
    assert "Wqkv and out_proj match no layer" in targets.found
    assert "7,864,320 of 1,426,135,040" in targets.found


PLANTED = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7xY9zA2cD4f"[:34]
PLACE = "test_datasets.0.type.system_prompt"
MUTATIONS = {
    "a typo at the top": ("warmup_ratio: 0.1", "warmup_ration: 0.1", "unknown-key", "warmup_ration"),
    "a typo in a data set": ("    split: train\n", "    splt: train\n", "unknown-key", "datasets.0.splt"),
    "a wrong data-set type": (None, "alpaca_chat.load_qaa", "dataset-type", "datasets.0.type"),
    "a missing DeepSpeed file": ("bf16: false", "bf16: false\ndeepspeed: no/z2.json", "deepspeed-file", "deepspeed"),
    "a target that matches nothing": ("[q_proj, ", "[q_proj, qkv_proj, ", "target-modules", "lora_target_modules"),
    "a masked end token": ('eos_token: <|im_end|>', 'eos_token: <|im_start|>', "end-of-turn", "special_tokens"),
    "another system prompt": ("  system_prompt: You are", "  system_prompt: You were", "system-prompt", PLACE),
    "1e-4 as text": ("learning_rate: 0.0005", "learning_rate: 1e-4", "text-number", "learning_rate"),
    "a planted token": ("### training", f"### training {PLANTED}", "secret", None),
    "a duplicate key": ("seed: 42", "seed: 42\nseed: 43", "duplicate-key", "seed"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_run_file_gives_exactly_the_finding_meant_for_it(checked, embedded_model, run_file, name):
    old, new, check, key = MUTATIONS[name]
    path = run_file("lora", "bf16=false")  # not every processor has bf16, and the check says so
    text = path.read_text()
    if old is None:
        start, end = text.index("    type:"), text.index("test_datasets:")
        changed = f"{text[:start]}    type: {new}\n{text[end:]}"
    else:
        assert old in text
        changed = text.replace(old, new, 1)
    path.write_text(changed)
    report = checked(path)
    (finding,) = [one for one in report.findings if one.severity != "note"]
    assert (finding.severity, finding.check) == ("error", check), list(report.as_text())
    assert key is None or finding.key == key
    assert finding.found and finding.expected and finding.fix
    assert finding.line == next(
        number for number, line in enumerate(changed.splitlines(), 1) if line not in text.splitlines()
    ) or name in ("a wrong data-set type", "a masked end token", "another system prompt", "a duplicate key")
    assert PLANTED not in json.dumps(report.as_json())


def test_the_report_of_a_mutated_file_shows_both_prompts(checked, embedded_model, run_file):
    path = run_file("lora")
    path.write_text(path.read_text().replace(r"<|im_start|>user\n{instruction}", "USER: {instruction}"))
    report = checked(path)
    found = of(report, "prompt-parity").found
    assert "row 1 of 483, 483 in all" in found and "trained '" in found and "USER: " in found and "asked   '" in found


CHAT = (
    """\
base_model: microsoft/Phi-4-mini-instruct
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_modules: [qkv_proj, o_proj]
lora_qkv_kernel: false
datasets:
  - path: rows.jsonl
    type: chat_template
"""
    + minimal.TRAINING
)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ("", {("end-of-turn", "special_tokens")}),
        ('eot_tokens: ["<|end|>"]\n', set()),
        ("chat_template: chatml\n", {("end-of-turn", "special_tokens")}),
        ("chat_template: phi_4\n", {("axolotl-refuses", "chat_template"), ("end-of-turn", "special_tokens")}),
    ],
)
def test_a_chat_template_type_is_tokenized_by_axolotl_itself(checked, tmp_path, monkeypatch, more, found):
    """Without eot_tokens Axolotl masks Phi-4-mini's end of turn in every row."""
    turns = [("system", "Be brief."), ("user", "What is 2?"), ("assistant", "It is a number.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    (tmp_path / "run.yaml").write_text(CHAT + more)
    monkeypatch.chdir(tmp_path)
    report = checked(tmp_path / "run.yaml", "phi4-mini-african-history")
    assert errors(report) == found, list(report.as_text())
    assert report.facts["masks"]["rows"] == 4 and report.facts["prompt"] is True


def test_rows_over_the_limit_are_counted_and_an_error_above_the_threshold(checked, embedded_model, run_file):
    report = checked(run_file("lora", "sequence_len=90"))
    finding = of(report, "cut-rows")
    assert finding.severity == "error" and f"{report.facts['masks']['cut']:,} of 483 rows" in finding.found


def test_leaked_questions_are_found_with_an_example(checked, embedded_model, run_file, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(ROOT / "data" / "african_history", data)
    leaked = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()[:10]]
    leaked[0]["question"] = leaked[0]["question"].upper()
    with open(data / "test.jsonl", "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in leaked)
    report = checked(run_file("lora", f"datasets.0.path={data}", f"test_datasets.0.path={data}"))
    finding = of(report, "leakage")
    assert (
        finding.severity == "error"
        and "10 of 110 test questions" in finding.found
        and "10 word for word" in finding.found
    )


def test_the_command_exits_1_on_an_error_with_the_findings_as_json(tool, embedded_model, run_file):
    path = run_file("lora", "lora_target_modules=[q_proj,Wqkv]")
    done = tool("check", path, "--json", "--row", "2")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["errors"] == 1 and answer["findings"][0]["check"] == "target-modules"
    assert answer["facts"]["masks"]["rows"] == 483 and answer["facts"]["target_modules"]["trainable"] == 30 * 16 * 1152
    assert "⟦" in done.stderr and done.stderr.count("row 2: ") == 1


def test_bf16_on_a_processor_that_emulates_it_is_a_warning(checked, embedded_model, run_file, monkeypatch):
    monkeypatch.setattr(processes, "has_bf16", lambda: False)
    finding = of(checked(run_file("lora")), "emulated-bf16")
    assert (finding.severity, finding.key) == ("warning", "bf16")


def test_the_command_reads_stdin_and_exits_0_when_nothing_is_wrong(tool, embedded_model, run_file, tmp_path):
    done = tool("check", "-", input=run_file("lora", "bf16=false").read_text(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "0 errors, 0 warnings" in done.stdout and done.stderr == ""


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n", "\x00", "a: !!python/object:os.system x\n"])
def test_what_is_no_run_file_at_all_is_one_finding(tool, tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    done = tool("check", tmp_path / "run.yaml")
    assert done.returncode == 1 and "error: yaml: " in done.stdout and "Traceback" not in done.stderr


def test_the_configurations_of_axolotls_own_example_tree_raise_nothing(axolotl):
    """Files that nobody here wrote: unpack Axolotl's source and name its examples/ folder in AXOLOTL_EXAMPLES."""
    tree = os.environ.get("AXOLOTL_EXAMPLES")
    if not tree:
        pytest.skip("AXOLOTL_EXAMPLES names no folder: Axolotl's source package has one, the installed one has not")
    files = sorted(path for path in Path(tree).rglob("*.y*ml"))
    assert len(files) > 200
    for path in files:
        report = preflight.run(path, axolotl)[0].report
        assert not [one for one in report.findings if one.check == "check-failed"], path
