"""Values of the right type with which nothing can be trained: one sentence from every tool, a finding of the check."""

import json

from lora_recipes.check import structure
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import runfile

import click
import pytest
import yaml

RUN = {"base_model": "a/b", "datasets": [{"path": "a/b"}], "output_dir": "outputs/r/v"}
INFINITE, NO_NUMBER = float("inf"), float("nan")
IMPOSSIBLE = [
    *[("seed", value) for value in (2**32, -1, 10**18)],
    *[(key, 10**18) for key in ("lora_r", "max_steps", "micro_batch_size", "sequence_len", "warmup_steps")],
    *[("learning_rate", value) for value in (1e300, INFINITE, NO_NUMBER, -1.0)],
    *[("num_epochs", value) for value in (1e300, INFINITE, NO_NUMBER)],
    *[(key, "p" * 300) for key in ("base_model", "output_dir", "deepspeed", "dataset_prepared_path")],
    *[(key, "a/" * 3000) for key in ("base_model", "output_dir")],
    *[(key, f"a{end}b") for key in ("base_model", "output_dir") for end in ("\0", "\x1b[31m", "\n", "\u202e")],
    *[("datasets", [entry]) for entry in ({}, {"split": "train"}, {"path": ""}, {"path": "a\0b"}, {"path": "p" * 300})],
    ("datasets", [{"path": "a/b", "data_files": ["fine.json", "a\0b"]}]),
    ("test_datasets", [{"split": "test"}]),
    *[("wandb_project", project) for project in ("a/b", "a#b", "a:b", "w" * 200)],
    *[("lora_target_modules", pattern) for pattern in ("(", "*", "a{99999999999}", "([a-z_.0-9]+)+X", "(.*)*(.*)*X")],
    ("lora_rank_pattern", {"(q_proj": 4}),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE)
def test_an_impossible_value_is_one_sentence_and_one_finding_with_its_line(tmp_path, key, value):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {key: value}, sort_keys=False))
    with pytest.raises(click.ClickException) as caught:
        runfile.load(path)
    message = caught.value.message
    assert "run.yaml, line " in message and f": {key}" in message and "; " in message, message
    assert message.isprintable() and len(message) < 500, message
    checked = CheckedRun(path)
    structure.check(checked)
    found = [one for one in checked.report.findings if one.severity == "error"]
    assert len(found) == 1 and found[0].check == "impossible-value" and found[0].line, found


POSSIBLE = {
    "seed": [0, 2**32 - 1],
    "max_steps": [-1, 0, 10],
    "lora_dropout": [0, 0.5],
    "learning_rate": [1e-7, 1],
    "save_total_limit": [0, 1],
    "lora_target_modules": ["q_proj", "all-linear", r".*\.layers\.\d+\.(self_attn|mlp)\.(q|v|up)_proj", ["q_proj"]],
    "wandb_project": ["a project-1.0_b"],
    "base_model": ["./Modèle é 漢", "a\xa0b", "p" * 255],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in POSSIBLE.items() for value in values])
def test_a_possible_value_is_taken(tmp_path, key, value):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {key: value}))
    assert runfile.load(path).config[key] == value


@pytest.mark.parametrize("stage", ["x", 9, -1, True, [], None, 1.5])
@pytest.mark.parametrize("inline", [True, False])
def test_a_zero_stage_that_there_is_none_of_is_one_sentence(tmp_path, stage, inline):
    settings = {"zero_optimization": {"stage": stage}}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {"deepspeed": settings if inline else str(tmp_path / "ds.json")}))
    with pytest.raises(click.ClickException, match="line .*: deepspeed: .*expected 0, 1, 2 or 3"):
        _ = runfile.load(path).zero_stage


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[]", "3"])
def test_deepspeed_files_without_end_or_mapping_are_one_sentence(tmp_path, text):
    (tmp_path / "ds.json").write_text(text)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {"deepspeed": str(tmp_path / "ds.json")}))
    with pytest.raises(click.ClickException, match="run.yaml, line 4: deepspeed: .*ds.json"):
        _ = runfile.load(path).deepspeed
