"""What ends a run when its base model is loaded is said before, in Axolotl's words; and a check that fails fails."""

import contextlib
import json

from lora_recipes import ROOT
from lora_recipes.check import arithmetic, leaks, loading, machine, masks, parity, parts, preflight, validation
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.validation import Axolotl
from lora_recipes.config import runfile

import check as tool
import families
import pytest
from click.testing import CliRunner

RUN = """\
base_model: owner/model
adapter: lora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
datasets:
  - path: owner/rows
    type: alpaca
sequence_len: 512
micro_batch_size: 2
gradient_accumulation_steps: 1
num_epochs: 1
learning_rate: 0.0001
bf16: true
output_dir: out
"""
PHI = {"phi4-mini": "Original QKV code not found", "phi1.5": "Original O code not found"}
"""Whose attention the kernels do not know, and what Axolotl says of it."""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a run file of a text into an empty working directory: its path."""
    monkeypatch.chdir(tmp_path)

    def make(more="", text=RUN):
        (tmp_path / "run.yaml").write_text(text + more, encoding="utf-8")
        return tmp_path / "run.yaml"

    return make


@pytest.fixture
def found(axolotl, write, tmp_path):
    """What Axolotl finds in a file for a family's model: `found("qwen3", "lora_o_kernel: true\\n")`."""

    def ask(family, more="", path=None):
        subject = CheckedRun(path or write(more), families.model_folder(family, tmp_path / family))
        validation.check(subject, [], [], axolotl)
        return subject.report.findings

    return ask


def places(findings):
    return [(one.severity, one.check, one.key) for one in findings]


@pytest.mark.slow
class TestKernels:
    """Axolotl's fused LoRA kernels, put on each family's true classes."""

    @pytest.mark.parametrize("family", families.NAMES)
    def test_kernels_that_axolotl_turns_on_are_an_error_where_they_do_not_know_the_attention(self, found, family):
        for _ in range(2):  # asking leaves the class as it was
            findings = found(family)
            assert places(findings) == ([("error", "kernels", "adapter")] if family in PHI else [])
        for one in findings:
            assert one.found.startswith(PHI[family]) and "by itself" in one.found
            assert one.fix.startswith("write lora_qkv_kernel: false;")
        assert found(family, "lora_qkv_kernel: false\n") == []

    @pytest.mark.parametrize("family", PHI)
    def test_a_kernel_that_is_named_is_the_place_and_the_line_to_write_mends_it(self, found, family):
        more = "lora_o_kernel: true\nlora_mlp_kernel: false\n"
        (finding,) = found(family, more)
        assert (finding.check, finding.key, finding.line) == ("kernels", "lora_o_kernel", 16)
        assert "by itself" not in finding.found and finding.fix == "write lora_o_kernel: false"
        assert found(family, more.replace("true", "false")) == []

    def test_a_kernel_that_is_named_and_acts_on_no_layer_is_a_note(self, found):
        assert places(found("phi1.5", "lora_mlp_kernel: true\n")) == [("note", "kernels", "lora_mlp_kernel")]
        assert found("qwen3", "lora_mlp_kernel: true\n") == []
        text = "lora_target_linear:\nlora_target_modules: [gate_proj, up_proj, down_proj]\n"
        assert places(found("qwen3", f"{text}lora_o_kernel: true\n")) == [("note", "kernels", "lora_o_kernel")]

    @pytest.mark.parametrize(
        "more", ["lora_dropout: 0.1\n", "peft_use_dora: true\n", "load_in_8bit: true\n", "rl: dpo\n"]
    )
    def test_what_axolotl_takes_beside_its_kernels_or_turns_them_off_for_is_no_error(self, found, more):
        assert not [one for one in found("llama3.2", more) if one.check == "kernels"]

    @pytest.mark.parametrize("more", ["load_in_8bit: true\n", "trust_remote_code: true\n"])
    def test_what_axolotl_refuses_beside_a_named_kernel_is_an_error_with_its_words(self, found, more):
        (finding,) = found("llama3.2", f"lora_mlp_kernel: true\n{more}")
        assert (finding.severity, finding.check) == ("error", "axolotl-refuses")
        assert "lora_mlp_kernel, lora_qkv_kernel, and lora_o_kernel are not compatible with" in finding.found

    @pytest.mark.parametrize("family", PHI)
    def test_every_checked_in_recipe_of_such_a_model_names_a_kernel(self, found, family):
        name = {"phi4-mini": "Phi-4-mini", "phi1.5": "phi-1_5"}[family]
        paths = [path for path in sorted((ROOT / "recipes").glob("*/*.yaml")) if name in runfile.load(path).model()]
        assert len(paths) >= 11
        for path in paths:
            assert not [one for one in found(family, path=path) if one.check == "kernels"], path

    def test_the_command_exits_1_and_names_the_kernels(self, axolotl, write, tmp_path, monkeypatch):
        monkeypatch.setattr(validation, "Axolotl", lambda: contextlib.nullcontext(axolotl))
        folder = families.model_folder("phi4-mini", tmp_path / "model")
        rows = '{"instruction": "What is 2?", "input": "", "output": "A number."}\n'
        (tmp_path / "rows.jsonl").write_text(rows * 4)
        text = RUN.replace("owner/rows", "rows.jsonl")
        done = CliRunner().invoke(tool.main, [str(write(text=text)), "--model-dir", str(folder), "--json"])
        kernels = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "kernels"]
        assert done.exit_code == 1 and "Original QKV code not found" in kernels[0]["found"]
        done = CliRunner().invoke(
            tool.main, [str(write("lora_qkv_kernel: false\n", text)), "--model-dir", str(folder), "--json"]
        )
        assert "kernels" not in {one["check"] for one in json.loads(done.stdout)["findings"]}

    def test_without_the_models_configuration_the_kernels_are_not_checked_and_nothing_is_said_of_them(
        self, axolotl, write
    ):
        subject = CheckedRun(write())
        loading.check(subject)
        validation.check(subject, [], [], axolotl)
        assert subject.report.findings == []
        assert "cannot be loaded" in dict(subject.report.unchecked)["base model"]


@pytest.mark.slow
class TestValidation:
    """Whatever ends Axolotl's own validation is an error."""

    def test_an_exception_of_any_type_is_an_error_with_its_words(self, found):
        (finding,) = found("llama3.2", "plugins: [json.JSONDecoder]\n")  # can be imported, and is no plugin
        assert (finding.severity, finding.check) == ("error", "axolotl-refuses")
        assert "AttributeError: 'JSONDecoder' object has no attribute" in finding.found

    def test_code_beside_the_run_file_is_not_run(self, axolotl, write, tmp_path):
        (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
        (tmp_path / "rows.jsonl").write_text('{"turns": "What is 2?"}\n')
        text = RUN.replace("owner/rows", "rows.jsonl").replace("type: alpaca", "type: mine.load")
        folder = families.model_folder("qwen3", tmp_path / "model")
        report = preflight.run(write(text=text + "plugins: [mine.Plugin]\n"), axolotl, folder)[0].report
        assert not (tmp_path / "ran").exists()
        assert "code beside the file" in dict(report.unchecked)["datasets.0 prompt"]

    def test_a_base_model_that_does_not_go_with_the_file_is_an_error_with_axolotls_words(self, found):
        (finding,) = found("llama3.2", "gptq: true\n")
        assert (finding.check, finding.key) == ("axolotl-refuses", "base_model")
        assert "model_config.quantization_config is not set" in finding.found

    def test_rows_that_axolotl_cannot_tokenize_are_an_error(self, axolotl, write, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"turns": "What is 2?"}\n')
        text = RUN.replace("owner/rows", "rows.jsonl").replace("type: alpaca", "type: chat_template")
        folder = families.model_folder("qwen3", tmp_path / "model")
        report = preflight.run(write(text=text), axolotl, folder)[0].report
        assert ("error", "data", "datasets.0.type") in places(report.findings)


class TestAttention:
    """attn_implementation, asked of the class."""

    @pytest.fixture
    def found(self, write, tmp_path):
        def ask(config, attention):
            config.save_pretrained(tmp_path / "model")
            subject = CheckedRun(write(f"attn_implementation: {attention}\n"), tmp_path / "model")
            loading.check(subject)
            return [(one.check, one.key, one.fix) for one in subject.report.findings]

        return ask

    @pytest.mark.parametrize("attention", ["sdpa", "flex_attention", "flash_attention_2"])
    def test_one_that_the_model_has_not_is_an_error_with_one_that_it_has(self, found, attention):
        from transformers import BloomConfig, LlamaConfig

        bloom = BloomConfig(vocab_size=32, hidden_size=8, n_layer=1, n_head=2)
        assert found(bloom, attention) == [("attention", "attn_implementation", "write attn_implementation: eager")]
        llama = LlamaConfig(
            vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
        assert found(llama, attention) == []  # also where the package of flash attention is not installed

    def test_one_of_axolotls_own_and_eager_are_not_asked_of_transformers(self, found):
        from transformers import BloomConfig

        bloom = BloomConfig(vocab_size=32, hidden_size=8, n_layer=1, n_head=2)
        assert found(bloom, "eager") == found(bloom, "xformers") == []


def test_the_turns_of_a_row_are_where_the_data_set_says(write, tmp_path):
    row = {"dialog": [{"who": "user", "text": "What is 2?"}, {"who": "assistant", "text": "A number."}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    names = "field_messages: dialog\n    message_property_mappings: {role: who, content: text}"
    text = RUN.replace("owner/rows", "rows.jsonl").replace("type: alpaca", f"type: chat_template\n    {names}")
    (part,) = parts.load(CheckedRun(write(text=text)), "datasets")
    assert part.questions == ["What is 2?"]


class TestAFailure:
    """A check that fails itself is a failed check: never one that was left out."""

    @pytest.fixture
    def absent(self, monkeypatch):
        """No Axolotl."""
        with Axolotl() as made:
            made.installed = False
            monkeypatch.setattr(validation, "Axolotl", lambda: contextlib.nullcontext(made))
            yield made

    @pytest.fixture
    def worker(self, tmp_path, monkeypatch):
        """Take a shell script for the worker process."""

        def put(script):
            path = tmp_path / "python"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            monkeypatch.setattr(validation.sys, "executable", str(path))

        return put

    @pytest.mark.parametrize(
        ("module", "name"),
        [(machine, "machine"), (parity, "parity"), (masks, "masks"), (arithmetic, "arithmetic"), (leaks, "leakage")],
    )
    @pytest.mark.parametrize("error", [ZeroDivisionError("by nothing"), tool.click.ClickException("by nothing")])
    def test_of_a_check_is_an_error_that_names_it_and_the_command_exits_1(
        self, absent, write, monkeypatch, error, module, name
    ):
        def fail(*_):
            raise error

        monkeypatch.setattr(module, "check", fail)
        done = CliRunner().invoke(tool.main, [str(write()), "--json"])
        failed = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "check-failed"]
        assert done.exit_code == 1 and len(failed) == 1
        assert f"the check of {name} itself failed" in failed[0]["found"] and "by nothing" in failed[0]["found"]

    @pytest.mark.parametrize("content", ['{"messages": [\n', "null\n", ""])
    def test_to_read_rows_that_are_here_is_an_error(self, absent, write, tmp_path, content):
        (tmp_path / "rows.jsonl").write_text(content)
        report = preflight.run(write(text=RUN.replace("owner/rows", "rows.jsonl")), absent)[0].report
        assert ("error", "data", "datasets.0.path") in places(report.findings)

    def test_of_the_chat_template_on_a_real_prompt_is_an_error(self, absent, write, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"q": "What is 2?", "a": "A number."}\n')
        mapping = "type: {field_instruction: q, field_output: a, format: 'Q {instruction} A '}"
        text = RUN.replace("owner/rows", "rows.jsonl").replace("type: alpaca", mapping)
        refusing = "chat_template_jinja: \"{{ raise_exception('no such turn') }}\"\n"
        folder = families.model_folder("qwen3", tmp_path / "model")
        report = preflight.run(write(refusing, text), absent, folder)[0].report
        (finding,) = [one for one in report.findings if one.check == "prompt-parity"]
        assert finding.severity == "error" and "no such turn" in finding.found

    def test_without_axolotl_nothing_is_wrong_and_that_is_said(self, absent, write):
        report = preflight.run(write(), absent)[0].report
        assert not report.failed and "Axolotl's own validation, types and prompts" in dict(report.unchecked)

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("read job; echo 'no GLIBC' >&2; exit 3", "exit code 3 without an answer; it said last: no GLIBC"),
            ("read job; kill -9 $$", "ended by signal 9 without an answer"),
            ('read job; echo \'{"failed": "ImportError: no torch"}\'', "ImportError: no torch"),
        ],
    )
    def test_of_axolotls_process_is_an_error_with_its_last_words(self, worker, write, script, words):
        worker(script)
        with Axolotl() as axolotl:
            report = preflight.run(write(), axolotl)[0].report
        (finding,) = [one for one in report.findings if one.severity == "error"]
        assert finding.check == "check-failed" and words in finding.found and "make setup" in finding.fix
