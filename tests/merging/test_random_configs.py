"""Over random settings of PEFT's LoRA: the check counts what PEFT trains, and a merge is PEFT's model or is refused."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lora_recipes.models import loading, lora

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from merges import RUN, copy_setting, merge, write_adapter, write_base

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"]
PATTERNS = st.dictionaries(st.sampled_from(["q_proj", "layers.1.mlp.up_proj", "^.*down_proj"]), st.integers(1, 6))
CONFIGS = st.fixed_dictionaries(
    {
        "r": st.integers(1, 8),
        "lora_alpha": st.integers(1, 16),
        "target_modules": st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
        | st.sampled_from([r".*\.[qv]_proj", r".*layers\.[02]\.mlp\..*_proj"]),
    },
    optional={
        "layers_to_transform": st.lists(st.integers(0, 2), min_size=1, unique=True),
        "rank_pattern": PATTERNS,
        "alpha_pattern": PATTERNS,
        "exclude_modules": st.sampled_from([["k_proj"], r".*layers\.0\..*"]),
        "modules_to_save": st.sampled_from([["lm_head"], ["norm"], ["lm_head", "embed_tokens"]]),
        "trainable_token_indices": st.lists(st.integers(0, 20), min_size=1, max_size=3, unique=True),
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
    },
)
"""Keys of LoraConfig that name, restrict or widen what is trained, and that change how it is scaled."""

KEYS = {"r": "lora_r", "lora_alpha": "lora_alpha", "target_modules": "lora_target_modules"} | {
    theirs: ours for ours, theirs in lora._PASSED_ON.items()
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in float32, whose merged weights are not rounded."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("float32") / "base"
    write_base(folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(folder.with_name("whole"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder.with_name("whole") / name).write_bytes((folder / name).read_bytes())
    return folder.with_name("whole")


def _trained_by_peft(base: Path, config: dict[str, Any]) -> int | None:
    """The parameters that PEFT itself trains; None where it refuses."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    try:
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **config))
    except (ValueError, TypeError):
        return None
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _logits(folder: Path, adapter: Path | None = None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(4, 44)[None]).logits


@pytest.mark.slow
def test_counts_and_merges_are_pefts_or_are_refused(
    base: Path, originals: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outcomes: list[str] = []

    @settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CONFIGS)
    def hold(config: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes.append(_held(config, base, copy_setting(originals, tmp_path_factory.mktemp("run"))))

    hold()
    assert outcomes.count("merged") >= 20 and "merge refused" in outcomes, outcomes


def _held(config: dict[str, Any], base: Path, setting: SimpleNamespace) -> str:
    from transformers import AutoConfig

    model = loading.without_weights(AutoConfig.from_pretrained(base))
    counted = lora.matched({KEYS[name]: value for name, value in config.items()}, model)
    trained = _trained_by_peft(base, config)
    assert counted.trained == (trained or 0), (config, counted)
    if trained is None:
        assert counted.refused
        return "PEFT refuses"
    write_adapter(base, setting.adapter, **config)
    saved = json.loads((setting.adapter / "adapter_config.json").read_text())
    assert saved["r"] == config["r"]
    setting.run.write_text(RUN.format(base=base, data=setting.data, output_dir=setting.adapter))
    done = merge(setting.run, "--no-verify")
    if done.exit_code:
        assert done.exit_code == 1 and isinstance(done.exception, SystemExit), (config, done.output)
        assert done.stderr.strip().splitlines()[-1].startswith("Error: ") and not setting.merged.exists()
        return "merge refused"
    difference = (_logits(setting.merged) - _logits(base, setting.adapter)).abs().max().item()
    assert difference <= 1e-5 * max(1.0, _logits(base).abs().max().item()), (config, difference)
    return "merged"
