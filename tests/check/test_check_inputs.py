"""What a run file names is there, or the check says what is not and what was probably meant."""

import json

from lora_recipes import ROOT
from lora_recipes.check import inputs
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import values

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, in a folder with nothing else; what lies beside the checkout is not found from it."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(values, "ROOT", folder)
    return folder


@pytest.fixture
def subject(here):
    """Check a text in the working directory: `subject(text)` with its findings."""

    def make(text):
        (here / "run.yaml").write_text(text, encoding="utf-8")
        made = CheckedRun("run.yaml")
        inputs.check(made)
        return made

    return make


@pytest.fixture
def findings(subject):
    return lambda text: [(one.severity, one.check, one.key, one.fix) for one in subject(text).report.findings]


@pytest.mark.parametrize("name", ["./models/x", "{here}/x", "../x", "~/models/x", "models/family/x", "my model"])
def test_a_base_model_that_is_neither_there_nor_a_name_on_the_hub_is_an_error(findings, here, name):
    found = findings(f"base_model: {name.format(here=here)}\n")
    assert [one[:3] for one in found] == [("error", "base-model", "base_model")]


@pytest.mark.parametrize("name", ["gpt2", "microsoft/Phi-4-mini-instruct", "01-ai/Yi-6B", "s3://bucket/a/b/c"])
def test_a_name_on_the_hub_is_no_error(findings, name):
    assert findings(f"base_model: {name}\n") == []


def test_a_base_model_that_is_there_is_no_error(findings, here):
    (here / "models" / "x").mkdir(parents=True)
    assert findings("base_model: ./models/x\n") == []


@pytest.mark.parametrize("path", ["rows.jsonl", "./rows", "{here}/rows", "data/rows", "~/rows.csv", "a/b/c"])
def test_a_local_data_path_that_leads_nowhere_is_an_error(findings, here, path):
    (here / "data").mkdir()
    for key in ("datasets", "test_datasets"):
        found = findings(f"{key}:\n  - path: {path.format(here=here)}\n")
        assert [one[:3] for one in found] == [("error", "data-files", f"{key}.0.path")]


@pytest.mark.parametrize("path", ["tatsu-lab/alpaca", "teknium/OpenHermes-2.5", "wikitext", "s3://b/rows.jsonl"])
def test_data_on_the_hub_are_no_error(findings, path):
    assert findings(f"datasets:\n  - path: {path}\n    data_files: [train.jsonl]\n") == []


def test_data_files_that_match_nothing_are_an_error(findings, here):
    (here / "rows").mkdir()
    (here / "rows" / "a.jsonl").touch()
    text = "datasets:\n  - path: rows\n    data_files: ['{}']\n"
    for there in ("rows/a.jsonl", "rows/*.jsonl"):  # from the working directory, as Axolotl takes them
        assert findings(text.format(there)) == []
    assert [one[1:3] for one in findings(text.format("a.jsonl"))] == [("data-files", "datasets.0.data_files")]


def test_a_deepspeed_file_that_is_absent_is_an_error_with_the_nearest_of_its_stage(subject):
    (finding,) = subject("deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json\n").report.findings
    assert finding.check == "deepspeed-file" and "deepspeed_configs/zero3.json" in finding.fix
    (finding,) = subject("deepspeed: nothing.json\n").report.findings
    assert "axolotl fetch deepspeed_configs" in finding.fix


@pytest.mark.parametrize(("text", "words"), [('{"a": 1,\n', "line 2"), ("[1]", "no mapping")])
def test_a_malformed_deepspeed_file_is_an_error_with_the_place(subject, here, text, words):
    (here / "ds.json").write_text(text)
    made = subject("deepspeed: ds.json\n")
    (finding,) = made.report.findings
    assert finding.check == "deepspeed-file" and words in finding.found
    assert inputs.deepspeed_config(made) is None


def test_deepspeed_settings_are_read_from_a_file_or_inline(subject, here):
    settings = {"zero_optimization": {"stage": 2}}
    (here / "ds.json").write_text(json.dumps(settings))
    for value in ("ds.json", json.dumps(settings)):
        made = subject(f"deepspeed: {value}\n")
        assert made.report.findings == [] and inputs.deepspeed_config(made) == settings


def test_a_plugin_that_cannot_be_imported_is_an_error(subject, here):
    (here / "mine.py").touch()
    plugins = "[lora_recipes.plugin.CpuPlugin, mine.Plugin, lora_recipe.plugin.CpuPlugin, nodot, 3]"
    found = subject(f"plugins: {plugins}\n").report.findings
    assert [(one.check, one.key) for one in found] == [("plugin", "plugins.2"), ("plugin", "plugins.3")]
    assert "lora_recipes.plugin.CpuPlugin" in found[0].fix


def test_axolotl_plugins_are_found_by_their_long_and_short_names(findings):
    assert findings("plugins: [axolotl.integrations.liger.LigerPlugin, liger.LigerPlugin]\n") == []
    assert [one[1] for one in findings("plugins: [axolotl.integrations.ligre.LigerPlugin]\n")] == ["plugin"]


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("chat_template: tokenizer_default_fallback_chatlm\n", "chatml"),
        ("chat_template_jinja: templates/mine.jinja\n", "correct the path"),
        ("datasets:\n  - path: a/b\n    chat_template: lama3\n", "llama3"),
    ],
)
def test_a_chat_template_that_does_not_exist_and_passes_axolotls_validation_is_an_error(findings, text, fix):
    (finding,) = findings(text)
    assert finding[:2] == ("error", "chat-template") and fix in finding[3]


def test_chat_templates_of_axolotl_and_ones_own_are_accepted(findings, here):
    (here / "mine.jinja").touch()
    for name in ("chatml", "phi_4", "tokenizer_default", "tokenizer_default_fallback_chatml"):
        assert findings(f"chat_template: {name}\n") == []
    for jinja in ("mine.jinja", "'{{ messages }}'"):
        assert findings(f"chat_template: jinja\nchat_template_jinja: {jinja}\n") == []


def test_without_axolotl_its_plugins_are_said_to_be_unchecked(subject, monkeypatch):
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    made = subject("plugins: [axolotl.integrations.liger.LigerPlugin]\n")
    assert made.report.findings == [] and dict(made.report.unchecked) == {"plugins": "Axolotl is not installed here"}


def test_the_checked_in_recipes_name_what_is_there(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        made = CheckedRun(path)
        inputs.check(made)
        # the model of the CPU recipe is made by `make setup`
        assert [one for one in made.report.findings if one.check != "base-model"] == [], path


def test_a_reader_that_may_run_what_it_reads_is_an_error_wherever_it_is_named(findings):
    for key in ("datasets", "test_datasets", "pretraining_dataset"):
        for entry, name in (("path: pandas", "path"), ("path: rows\n    ds_type: pandas", "ds_type")):
            found = findings(f"{key}:\n  - {entry}\n    data_files: x.pkl\n")
            assert ("error", "reader", f"{key}.0.{name}") in [one[:3] for one in found]


def test_a_file_that_axolotl_takes_for_a_pattern_is_an_error(findings, here):
    (here / "rows[1].jsonl").touch()
    (found,) = findings("datasets:\n  - path: rows[1].jsonl\n    type: completion\n")
    assert found[:3] == ("error", "data-files", "datasets.0.path")
