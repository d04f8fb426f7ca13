"""What Axolotl accepts and trains otherwise than meant is said before it is trained."""

import os

from lora_recipes import ROOT
from lora_recipes.check import arithmetic, inputs, machine, secrets, traps
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.rendering import computed_keys

import pytest
import yaml

KEYS = """
    base_model adapter load_in_4bit optimizer plugins special_tokens sample_packing deepspeed rl chat_template
    chat_template_jinja hub_model_id wandb_project comet_project_name max_steps num_epochs micro_batch_size bf16
    gradient_accumulation_steps warmup_steps warmup_ratio eval_steps saves_per_epoch sequence_len lora_model_dir
    attn_implementation dataset_prepared_path pretraining_dataset trust_remote_code
"""
"""Keys that the checks read."""


@pytest.fixture
def findings(findings_of):
    """What the check says to a text, in an empty working directory."""
    return lambda text: findings_of(traps.check, text)


@pytest.fixture
def places(findings):
    return lambda text: [(one.severity, one.check, one.key) for one in findings(text)]


def test_packing_needs_an_attention_implementation_that_keeps_rows_apart(places):
    packed = "sample_packing: true\n"
    assert places(packed) == [("error", "packing-attention", "sample_packing")]
    assert places(packed + "flash_attention: false\n")[0] == ("error", "packing-attention", "sample_packing")
    assert places(packed + "attn_implementation: sdpa\n") == []
    assert places(packed + "flash_attention: true\n") == []
    assert places("sample_packing: false\n") == []


def test_packs_grouped_by_length_are_a_warning(places):
    text = "attn_implementation: sdpa\nsample_packing: true\ngroup_by_length: true\n"
    assert places(text) == [("warning", "group-by-length", "group_by_length")]


class TestStaleCache:
    """Axolotl finds tokenized rows by path and settings; a changed file is not noticed."""

    TEXT = "dataset_prepared_path: cache\ndatasets:\n  - path: rows.jsonl\n"

    @pytest.fixture
    def cache(self, tmp_path):
        """Write rows of an age and a cache with one folder for each of some ages, in seconds."""

        def make(rows, *ages, name="cache"):
            (tmp_path / "rows.jsonl").write_text("{}\n")
            os.utime(tmp_path / "rows.jsonl", (1e9 - rows, 1e9 - rows))
            for number, age in enumerate(ages):
                file = tmp_path / name / str(number) / "data.arrow"
                file.parent.mkdir(parents=True)
                file.touch()
                os.utime(file, (1e9 - age, 1e9 - age))

        return make

    def test_rows_newer_than_every_cache_are_an_error(self, places, cache):
        cache(10, 20)
        assert places(self.TEXT) == [("error", "stale-cache", "dataset_prepared_path")]

    def test_rows_newer_than_one_of_two_caches_are_a_warning(self, places, cache):
        cache(10, 20, 5)
        assert places(self.TEXT) == [("warning", "stale-cache", "dataset_prepared_path")]

    def test_rows_older_than_the_cache_are_fine(self, places, cache):
        cache(20, 10)
        assert places(self.TEXT) == []

    def test_without_a_path_axolotls_own_cache_is_looked_at(self, places, cache):
        cache(10, 20, name="last_run_prepared")
        assert places("datasets:\n  - path: rows.jsonl\n") == [("error", "stale-cache", "dataset_prepared_path")]

    def test_no_cache_and_data_on_the_hub_are_fine(self, places, cache):
        cache(10)
        assert places(self.TEXT) == []
        cache(10, 20)
        assert places(self.TEXT.replace("rows.jsonl", "a/b")) == []

    def test_a_path_that_ends_in_the_hash_of_the_rows_is_fine(self, places, cache, tmp_path):
        cache(10, 20)
        digest = computed_keys.data_digest({"datasets": [{"path": "rows.jsonl"}]}, tmp_path)
        (tmp_path / "cache").rename(tmp_path / f"cache-{digest}")
        text = self.TEXT.replace("cache", f"cache-{digest}")
        assert places(text) == []
        (tmp_path / "rows.jsonl").write_text('{"a": 1}\n')
        assert places(text) == [("error", "stale-cache", "dataset_prepared_path")]


def test_four_bit_weights_without_qlora_are_an_error(places):
    assert places("adapter: lora\nload_in_4bit: true\n") == [("error", "four-bit", "load_in_4bit")]
    assert places("adapter: qlora\nload_in_4bit: true\n") == []


def test_an_unknown_optimizer_is_an_error_with_the_nearest(findings):
    (finding,) = findings("optimizer: adamw_troch\n")
    assert (finding.check, finding.line) == ("optimizer", 1) and "'adamw_torch'" in finding.fix
    assert findings("optimizer: AdamW\n")[0].fix.startswith(("did you mean", "write adamw_torch"))
    assert findings("optimizer: paged_adamw_8bit\n") == []


def test_a_padding_token_that_is_the_end_token_is_a_warning(places):
    text = "special_tokens:\n  pad_token: {}\n  eos_token: <e>\n"
    assert places(text.format("<e>")) == [("warning", "pad-token", "special_tokens.pad_token")]
    assert places(text.format("<p>")) == []


def test_a_padding_token_is_held_against_the_tokenizers_own_end_token(findings, monkeypatch):
    monkeypatch.setattr(CheckedRun, "tokenizer", type("Tokenizer", (), {"eos_token": "<e>"}))
    assert [one.check for one in findings("special_tokens:\n  pad_token: <e>\n")] == ["pad-token"]
    monkeypatch.setattr(CheckedRun, "tokenizer", None)
    assert findings("special_tokens:\n  pad_token: <e>\n") == []


def test_epochs_and_steps_together_are_a_note(places):
    assert places("num_epochs: 3\nmax_steps: 10\n") == [("note", "epochs-and-steps", "max_steps")]
    assert places("num_epochs: 3\nmax_steps: -1\n") == []


def test_no_value_of_any_type_makes_a_check_fail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = [
        None,
        True,
        -1,
        10**18,
        float("inf"),
        float("nan"),
        "",
        "a.b",
        "~",
        ":",
        [],
        [None, 1, {}],
        [[1]],
        {"a": 1},
    ]
    for name in KEYS.split():
        for value in values:
            (tmp_path / "run.yaml").write_text(yaml.safe_dump({"test_datasets": [{"path": "a/b"}], name: value}))
            subject = CheckedRun("run.yaml")
            for module in (secrets, inputs, traps, machine):
                module.check(subject)
            for rows, tokens in ((None, None), (100, 1000)):
                arithmetic.check(subject, rows, tokens)


def test_the_checked_in_recipes_have_no_error_but_those_as_published(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in sorted((ROOT / "recipes").glob("*/*.yaml")):
        subject = CheckedRun(path)
        traps.check(subject)
        machine.check(subject)
        errors = [one for one in subject.report.findings if one.severity == "error" and one.check != "stale-cache"]
        assert errors == [] or "as-published" in str(path), path
