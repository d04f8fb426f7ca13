"""Secrets, foreign code and missing logins are found in any run file, and no secret is said aloud."""

import json

from lora_recipes.check import secrets, structure
from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.config import runfile
from lora_recipes.results import tracking

import click
import pytest

MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1bC2dE3f"
HEX = "0123456789abcdef0123456789abcdef01234567"
HF = "hf_" + MIXED[:34]
PLAIN = "base_model: x/y\noutput_dir: o\n"


@pytest.fixture
def findings(tmp_path, monkeypatch):
    """What the check says to a text, as a list of findings."""
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)

    def find(text):
        path = tmp_path / "run.yaml"
        path.write_text(PLAIN + text, encoding="utf-8")
        subject = CheckedRun(path)
        secrets.check(subject)
        return subject.report.findings

    return find


@pytest.mark.parametrize(
    ("text", "secret", "key", "kind"),
    [
        ("wandb_name: {}\n", HF, "wandb_name", "Hugging Face token, 37 characters"),
        ("# export HF_TOKEN={}\n", HF, "line 3", "Hugging Face token"),
        ("seed: 1 # {}\n", HEX, "seed", "Weights & Biases key, 40 characters"),
        ("wandb_name: {}\n", "wandb_v1_" + MIXED, "wandb_name", "Weights & Biases key, 49 characters"),
        ("wandb_name: {}\n", "sk-proj-" + MIXED, "wandb_name", "an API key, 48 characters"),
        ("wandb_name: {}\n", "ghp_" + MIXED[:36], "wandb_name", "a GitHub token"),
        ("wandb_name: {}\n", "github_pat_" + MIXED, "wandb_name", "a GitHub token"),
        ("wandb_name: {}\n", "AKIA" + "A1B2C3D4E5F6G7H8", "wandb_name", "an AWS access key, 20 characters"),
        ("wandb_name: {}\n", "xoxb-" + MIXED, "wandb_name", "a Slack token"),
        ("wandb_name: {}\n", f"eyJ{MIXED[:10]}.eyJ{MIXED}.{MIXED}", "wandb_name", "JWT"),
        ("wandb_name: '{}'\n", "-----BEGIN RSA PRIVATE KEY-----", "wandb_name", "a private key"),
        ("datasets:\n  - path: https://me:{}@example.org/x\n", "pa55word", "datasets.0.path", "password in an address"),
        ("comet_api_key: {}\n", "short", "comet_api_key", "under a key for a secret, 5 characters"),
        ("hatchery:\n  api_key: {}\n", "short", "hatchery.api_key", "under a key for a secret"),
        ("hf_use_auth_token: {}\n", "letmein", "hf_use_auth_token", "under a key for a secret"),
        ("swanlab_lark_secret: {}\n", "letmein", "swanlab_lark_secret", "under a key for a secret"),
    ],
)
def test_a_secret_is_one_error_with_its_key_and_kind_and_without_itself(findings, text, secret, key, kind):
    (finding,) = findings(text.format(secret))
    assert (finding.severity, finding.check, finding.key) == ("error", "secret", key)
    assert kind in finding.found
    assert finding.line and finding.line >= 3
    assert secret not in repr(finding)


def test_two_secrets_are_two_findings_and_one_under_its_key_is_one(findings):
    assert len(findings(f"comet_api_key: {HF}\nwandb_name: {HF}\n")) == 2
    assert len(findings(f"comet_api_key: {HF} # {HEX}\n")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "special_tokens:\n  eos_token: <|im_end|>\n  pad_token: <|endoftext|>\n",
        "tokens: [<a>, <b>]\neot_tokens: [<|end|>]\n",
        f"revision_of_model: {HEX}\n",
        f"# commit {HEX} of the data\n",
        f"# see example.org/tree/{HEX}\n",
        f"dataset_prepared_path: .cache/{HEX}\n",
        f"# sha256 {HEX}{HEX[:24]}\n",
        f"wandb_run_id: {HEX}{HEX[:24]}\n",
        f"wandb_name: hf_{'x' * 34}\n",
        "comet_api_key: ${COMET_API_KEY}\nswanlab_api_key: your-api-key\n",
        "hf_use_auth_token: true\ninclude_tokens_per_second: true\n",
        "wandb_name: risk-averse-and-quite-long-hyphenated-name\n",
        "# https://example.org:8080/path@v1 and git@example.org:a/b\n",
        "mlflow_tracking_uri: https://user:${PASSWORD}@example.org\n",
        "comet_experiment_key: abcdefghij\n",
    ],
)
def test_names_hashes_placeholders_and_special_tokens_are_no_secrets(findings, text):
    assert findings(text) == []


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("trust_remote_code: true\n", "trust_remote_code"),
        ("datasets:\n  - path: a/b\n    trust_remote_code: true\n", "datasets.0.trust_remote_code"),
    ],
)
def test_code_from_a_repository_is_an_error(findings, text, key):
    (finding,) = findings(text)
    assert (finding.severity, finding.check, finding.key) == ("error", "trust-remote-code", key)
    assert findings(text.replace("true", "false")) == []


def test_a_local_model_with_pickled_weights_only_is_an_error(findings, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "training_args.bin").touch()
    text = f"lora_model_dir: {tmp_path}/model\n"
    assert findings(text) == []
    (tmp_path / "model" / "adapter_model.bin").touch()
    (finding,) = findings(text)
    assert finding.check == "pickled-weights" and "adapter_model.bin" in finding.found
    (tmp_path / "model" / "adapter_model.safetensors").touch()
    assert findings(text) == []
    assert [one.check for one in findings("save_safetensors: false\n")] == ["pickled-weights"]


def test_a_push_without_a_login_is_an_error_and_with_one_is_not(findings, monkeypatch):
    (finding,) = findings("hub_model_id: me/mine\n")
    assert (finding.severity, finding.check, finding.key) == ("error", "hub-login", "hub_model_id")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: HF)
    assert findings("hub_model_id: me/mine\n") == []


def test_scores_for_a_tracker_without_a_login_are_an_error(findings, monkeypatch):
    def refuse(run):
        raise click.ClickException("no W&B login")

    monkeypatch.setattr(tracking, "require_login", refuse)
    (finding,) = findings("wandb_project: mine\n")
    assert (finding.severity, finding.check, finding.key) == ("error", "tracker-login", "wandb_project")
    assert findings("seed: 1\n") == []


def test_no_finding_and_no_error_repeats_a_token_where_another_type_is_meant(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(f"{PLAIN}datasets: [{{path: x}}]\nhf_use_auth_token: {HF}\n{HF}: 1\nseed: {HF}\n")
    subject = CheckedRun(path)
    structure.check(subject)
    assert len(subject.report.findings) >= 3
    said = json.dumps(subject.report.as_json()) + "\n".join(subject.report.as_text())
    with pytest.raises(click.ClickException) as caught:
        runfile.load(path)
    assert HF not in said and HF not in caught.value.message
    assert "line 4: a Hugging Face token stands here" in caught.value.message
