"""No token reaches a file or the terminal, and no run calls home."""

import json
import os

from lora_recipes.config import runfile

import click
import pytest
from faults import AXOLOTL, Harness

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
def test_planted_tokens_appear_in_no_output_of_any_tool(tmp_path, tool, axolotl_libraries):
    folder = Harness(tmp_path).stage("private")
    path = folder / "run.yaml"
    path.write_text(path.read_text() + "wandb_project: private\nwandb_mode: offline\n")
    environment = os.environ | PLANTED | {"WANDB_MODE": "offline"}
    done = [axolotl_libraries.run([AXOLOTL, "train", "-"], cwd=folder, env=environment, input=path.read_text())]
    for command in (
        "eval run.yaml --limit 2 --max-new-tokens 4",
        "merge run.yaml",
        "report outputs",
        "check run.yaml",
        "train nowhere.yaml",
    ):
        done.append(tool(*command.split(), cwd=folder, env=environment))
        assert done[-1].returncode == 0 or "nowhere" in command or "check" in command, done[-1].stderr[-2000:]
    assert list(folder.rglob("*.wandb")), "W&B wrote nothing: the test shows nothing of it"
    said = "".join(one.stdout + one.stderr for one in done)
    assert done[0].returncode == 0 and not any(token in said for token in PLANTED.values())
    assert holding(folder) == []
    assert json.loads((folder / "outputs/small/peft/result.json").read_text())["training"]["status"] == "ok"
