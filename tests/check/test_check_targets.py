"""Target modules: what a name matches, and the parameters that it adds, as PEFT counts them."""

from lora_recipes.check import targets
from lora_recipes.check.checked_run import CheckedRun

import pytest

pytestmark = pytest.mark.slow

TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
RUN = "base_model: {}\noutput_dir: o\nadapter: lora\nlora_r: 4\nlora_alpha: 8\n"


@pytest.fixture
def checked(tmp_path):
    """The report on a run file with a tiny Llama as base model."""
    from transformers import LlamaConfig

    LlamaConfig(**TINY).save_pretrained(tmp_path / "model")

    def check(more):
        (tmp_path / "run.yaml").write_text(RUN.format(tmp_path / "model") + more)
        subject = CheckedRun(tmp_path / "run.yaml")
        targets.check(subject)
        return subject.report

    return check


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("lora_target_modules: [q_proj, down_proj]", {"target_modules": ["q_proj", "down_proj"]}),
        ("lora_target_modules: [layers.1.self_attn.k_proj]", {"target_modules": ["layers.1.self_attn.k_proj"]}),
        ("lora_target_linear: true", {"target_modules": "all-linear"}),
        ("lora_target_modules: [o_proj]\npeft_use_dora: true", {"target_modules": ["o_proj"], "use_dora": True}),
        (
            "lora_target_modules: [q_proj]\npeft_layers_to_transform: [1]",
            {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        ),
        (
            "lora_target_modules: [q_proj]\npeft_trainable_token_indices: [3]",
            {"target_modules": ["q_proj"], "trainable_token_indices": [3]},
        ),
        (
            "lora_target_modules: [q_proj]\nlora_modules_to_save: [lm_head]",
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        ),
    ],
)
def test_parameters_are_counted_as_peft_counts_them(checked, more, options):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    model = AutoModelForCausalLM.from_config(LlamaConfig(**TINY))
    trained, total = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, **options)).get_nb_trainable_parameters()
    report = checked(more + "\n")
    assert not report.findings
    assert (report.facts["target_modules"]["trainable"], report.facts["target_modules"]["total"]) == (trained, total)


@pytest.mark.parametrize("name", ["proj", "_proj", "q_pro", "attn.q", "Q_PROJ"])
def test_a_part_of_a_name_matches_nothing(checked, name):
    (finding,) = checked(f"lora_target_modules: [o_proj, {name}]\n").findings
    assert finding.severity == "error" and finding.found.startswith(f"{name} matches no layer of LlamaForCausalLM")


def test_a_pattern_that_matches_nothing_is_named_under_its_own_key(checked):
    (finding,) = checked("lora_target_modules: [o_proj]\nlora_rank_pattern: {v_proj: 8}\n").findings
    assert finding.key == "lora_rank_pattern" and finding.found.startswith("v_proj matches no layer")
    assert "of 5,712 parameters would be trained" in finding.found


def test_what_peft_refuses_is_an_error_in_its_words(checked):
    (finding,) = checked("lora_target_modules: [o_proj]\npeft_layers_pattern: [layers]\n").findings
    assert finding.severity == "error" and "`layers_to_transform` must also be specified" in finding.found


def test_no_names_at_all_is_an_error_that_names_those_there_are(checked):
    (finding,) = checked("").findings
    assert "no target modules" in finding.found and "q_proj" in finding.fix and "lm_head" not in finding.fix
