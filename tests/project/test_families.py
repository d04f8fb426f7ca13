"""The recipes of each model family against stand-ins: prompt, end of turn, numbers, and Axolotl's own tokens."""

import json
import re
import subprocess
import sys

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.data import prompts, questions, rows
from lora_recipes.models import loading
from lora_recipes.rendering import ingredients

import families
import pytest

END_OF_TURN = {
    "phi4-mini": "<|end|>",
    "qwen3": "<|im_end|>",
    "llama3.2": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "mistral": "</s>",
}
NEW = ("qwen3", "llama3.2", "gemma3", "mistral")


@pytest.fixture
def write(run_file, model_folder):
    """The run file of a family's recipe on its stand-in and on the rows of this project."""

    def made(family, *settings):
        data = ("datasets.0.path=data/african_history", "test_datasets.0.path=data/african_history")
        base = f"base_model={model_folder(family)}"
        return run_file("lora", base, *data, *settings, recipe=f"{family}-african-history")

    return made


@pytest.mark.parametrize("family", families.NAMES)
def test_a_stand_in_loads_and_brings_back_every_text(family, model_folder):
    from transformers import AutoConfig, AutoTokenizer

    path = model_folder(family)
    tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
    assert len(tokenizer) < config.vocab_size
    for text in ("Ọba of Benin, ራስ ዳሸን,\n\t two  spaces 🙂 ", "answered.\n\n"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True).removeprefix(" " * (family == "mistral")) == text
        assert (ids[0] == tokenizer.bos_token_id) == (family in ("llama3.2", "gemma3", "mistral"))
    assert bool(tokenizer.chat_template) == (family != "phi1.5")


def test_a_special_token_of_phi4_mini_swallows_the_space_behind_it(model_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder("phi4-mini"))
    assert tokenizer("<|user|> \nWho?<|end|> ")["input_ids"] == tokenizer("<|user|>Who?<|end|>")["input_ids"]


@pytest.mark.parametrize("family", END_OF_TURN)
def test_the_prompt_is_token_by_token_what_the_chat_template_asks(family, write):
    run = runfile.load(write(family))
    tokenizer = loading.load_tokenizer(run)
    found, mismatch = questions.load(run, tokenizer, "test")
    assert len(found) > 50 and not mismatch
    assert found[0].prompt_ids.count(tokenizer.bos_token_id) == (family in ("llama3.2", "gemma3", "mistral"))


@pytest.mark.parametrize("family", END_OF_TURN)
def test_the_last_trained_token_ends_the_turn_and_is_no_padding(family, write):
    run = runfile.load(write(family))
    tokenizer = loading.load_tokenizer(run)
    ((found, fmt),) = rows.load_parts(run, "train")
    for row in found[:50]:
        trained = [label for label in prompts.example(tokenizer, fmt, row)["labels"] if label != prompts.IGNORED]
        assert tokenizer.convert_ids_to_tokens(trained[-1]) == END_OF_TURN[family]
        space = " " * (family == "mistral")  # the template writes one before an answer, and so does the tokenizer
        assert tokenizer.decode(trained) == space + row["answer"] + END_OF_TURN[family]
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)


@pytest.mark.parametrize("family", END_OF_TURN)
def test_prompt_and_answer_are_the_chat_template_of_the_whole_conversation(family, write):
    run = runfile.load(write(family))
    tokenizer = loading.load_tokenizer(run)
    ((found, fmt),) = rows.load_parts(run, "train")
    made = prompts.example(tokenizer, fmt, found[0])["input_ids"]
    turns = [*fmt.messages(found[0]), {"role": "assistant", "content": found[0]["answer"]}]
    options = run.config.get("chat_template_kwargs") or {}
    text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    if family == "mistral":  # its template drops the system text once an answer follows, which the recipe does not
        assert fmt.system_prompt not in text
        text = text.replace("[INST] ", f"[INST] {fmt.system_prompt}\n\n")
    assert tokenizer(text, add_special_tokens=False)["input_ids"][: len(made)] == made


def test_llamas_prompt_changes_from_day_to_day_unless_its_date_is_given(write):
    run = runfile.load(write("llama3.2", "chat_template_kwargs="))
    _, mismatch = questions.load(run, loading.load_tokenizer(run), "test")
    assert "Today Date: 26 Jul 2024" in mismatch.split("trained")[1]
    assert "Today Date: 26 Jul 2024" not in mismatch.split("trained")[0]


def adapted(path, r, targets):
    """Weights of a model and of its LoRA adapter, counted on the meta device."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = families.meta_model(path)
    base = sum(parameter.numel() for parameter in model.parameters())
    with torch.device("meta"):
        trained, total = get_peft_model(model, LoraConfig(r=r, target_modules=targets)).get_nb_trainable_parameters()
    assert trained + base == total
    return base, trained, total


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "r", "targets", "trained", "total"),
    [
        ("phi4-mini", 8, ["o_proj"], 1_572_864, 3_837_594_624),
        ("phi1.5", 16, ["fc1", "fc2"], 7_864_320, 1_426_135_040),
    ],
)
def test_a_stand_in_has_the_weights_that_were_published(family, r, targets, trained, total, model_folder):
    assert adapted(model_folder(family), r, targets)[1:] == (trained, total)


@pytest.mark.slow
@pytest.mark.parametrize("family", NEW)
def test_a_recipe_states_the_size_of_its_model_and_of_its_adapter(family, model_folder):
    recipe = ingredients.load_recipe(f"{family}-african-history")
    base, trained, _ = adapted(model_folder(family), recipe.run["lora_r"], recipe.run["lora_target_modules"])
    assert f"the base weights alone are {2 * base / 1e9:.1f} GB in bf16" in recipe.facts["hardware"]
    assert f"at r {recipe.run['lora_r']} {trained:,} weights" in recipe.comments["lora_target_modules",]


@pytest.mark.slow
@pytest.mark.parametrize("family", NEW)
def test_gemmas_fused_mlp_is_off_and_no_other_model_needs_that(family, model_folder):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder(family))
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    kernel = ingredients.load_recipe(f"{family}-african-history").run.get("lora_mlp_kernel")
    assert (activation, kernel) == (("gelu_pytorch_tanh", False) if family == "gemma3" else ("silu", None))


AXOLOTL = """
import json, sys, yaml
from axolotl.loaders.tokenizer import load_tokenizer
from axolotl.prompt_strategies.user_defined import UserDefinedDatasetConfig, load
from axolotl.utils.dict import DictDefault
for path in sys.argv[1:]:
    cfg = DictDefault(yaml.safe_load(open(path)) | {"tokenizer_use_fast": True})
    cfg.tokenizer_config = cfg.base_model
    strategy = load(load_tokenizer(cfg), cfg, UserDefinedDatasetConfig(**cfg.datasets[0]["type"]))
    rows = [json.loads(line) for line in open("data/african_history/train.jsonl")][:20]
    made = [strategy.tokenize_prompt(row) for row in rows]
    print("ROWS", json.dumps([{key: list(one[key]) for key in ("input_ids", "labels")} for one in made]))
"""


@pytest.mark.slow
def test_axolotl_makes_the_same_tokens_and_labels(write, tmp_path):
    paths, ours = [], []
    for family in END_OF_TURN:
        paths.append(write(family).rename(tmp_path / f"{family}.yaml"))
        run = runfile.load(paths[-1])
        tokenizer = loading.load_tokenizer(run)
        ((found, fmt),) = rows.load_parts(run, "train")
        ours.append([prompts.example(tokenizer, fmt, row) for row in found[:20]])
    command = [sys.executable, "-c", AXOLOTL, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(rest) for rest in re.findall(r"(?m)^ROWS (.*)$", done.stdout)] == ours
