"""No token reaches a file or the terminal, and no run calls home."""

import json
import os
import subprocess
import sys

from lora_recipes import ROOT, runfile

import click
import pytest
from faults import BIN, Harness

PLANTED = {
    "HF_TOKEN": "hf_" + "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1b",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}


@pytest.mark.parametrize("line", ["wandb_name: {}", "# export TOKEN={}", "hub_model_id: me/{}"])
@pytest.mark.parametrize("secret", [PLANTED["HF_TOKEN"], "sk-" + "aB3dE5gH7jK9mN1pQ2rS4tU6"])
def test_a_run_file_with_a_token_is_refused_without_repeating_it(tmp_path, line, secret):
    path = tmp_path / "run.yaml"
    path.write_text(f"base_model: a/b\noutput_dir: out/r/v\ndatasets: [{{path: x}}]\n{line.format(secret)}\n")
    with pytest.raises(click.ClickException, match=r"run.yaml, line 4: an? .* stands here") as caught:
        runfile.load(path)
    assert secret not in caught.value.message


def holding(folder):
    """Files in which a planted token stands."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and any(token.encode() in path.read_bytes() for token in PLANTED.values()):
            found.append(str(path.relative_to(folder)))
    return found


@pytest.mark.slow
def test_planted_tokens_appear_in_no_output_of_any_tool(tmp_path):
    harness = Harness(tmp_path)
    folder = harness.stage("private")
    path = folder / "run.yaml"
    path.write_text(path.read_text() + "wandb_project: private\nwandb_mode: offline\n")
    environment = os.environ | PLANTED | {"WANDB_MODE": "offline"}
    said = ""
    for command in (
        f"{BIN}/axolotl train - < run.yaml",
        f"{sys.executable} {ROOT}/tools/eval.py run.yaml --limit 2 --max-new-tokens 4",
        f"{sys.executable} {ROOT}/tools/merge.py run.yaml",
        f"{sys.executable} {ROOT}/tools/report.py outputs",
        f"{sys.executable} {ROOT}/tools/check.py run.yaml",
        f"{sys.executable} {ROOT}/tools/train.py nowhere.yaml",
    ):
        done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        said += done.stdout + done.stderr
        assert done.returncode == 0 or "nowhere" in command or "check" in command, said[-2000:]
    assert list(folder.rglob("*.wandb")), "W&B wrote nothing: the test shows nothing of it"
    assert holding(folder) == [] and not any(token in said for token in PLANTED.values())
    assert json.loads((folder / "outputs/small/peft/result.json").read_text())["training"]["status"] == "ok"
