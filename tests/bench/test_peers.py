"""LLaMA-Factory is run where it is installed, without CUDA, on the very texts that the others train on."""

import json

import click
import peers
import pytest
import training


def test_it_is_skipped_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "COMMAND", tmp_path / "bin" / "llamafactory-cli")
    assert "bench/peers.py --install" in peers.absent()


def test_another_version_is_not_taken_for_the_peer(tmp_path, monkeypatch):
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "llamafactory-0.9.3.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.3\n")
    (tmp_path / "llamafactory-cli").touch()
    monkeypatch.setattr(peers, "HOME", tmp_path)
    monkeypatch.setattr(peers, "COMMAND", tmp_path / "llamafactory-cli")
    assert "holds LLaMA-Factory 0.9.3, not 0.9.5" in peers.absent()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.5\n")
    assert peers.absent() == ""


def test_an_install_that_would_bring_cuda_is_refused():
    def plan(*names):
        return {"install": [{"metadata": {"name": name}} for name in names]}

    peers.refuse_cuda(plan("torch", "numpy"))
    with pytest.raises(click.ClickException, match="nvidia-cublas and 1 more"):
        peers.refuse_cuda(plan("torch", "nvidia-cublas", "triton"))


def test_stand_ins_are_packages_that_pip_can_build(tmp_path):
    folders = peers._stubs(tmp_path)
    assert [(tmp_path / "torchaudio" / "torchaudio.py").exists(), len(folders)] == [True, 2]
    text = (tmp_path / "torchvision" / "pyproject.toml").read_text()
    assert 'name = "torchvision"\nversion = "0.19.0"' in text and "py-modules = []" in text
    assert not list((tmp_path / "torchvision").glob("*.py"))  # transformers would take it for the real one


def test_what_is_installed_beside_it_is_pinned_and_nothing_of_torch_or_cuda_is():
    lines = [line for line in peers.CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) > 80 and pins["transformers"] == "5.6.0" and pins["trl"] == "0.24.0"
    assert not pins.keys() & {"torch", "triton", *peers.STUBS}
    peers.refuse_cuda({"install": [{"metadata": {"name": name}} for name in pins]})


def test_an_installation_that_fails_says_what_pip_said():
    command = (peers.sys.executable, "-c", "print('torchvision 2.13.0 conflicts'); raise SystemExit('Impossible')")
    with pytest.raises(click.ClickException, match="trying failed.*\ntorchvision 2.13.0 conflicts\nImpossible"):
        peers._run("trying", *command)


def test_a_base_in_float32_is_the_base_with_another_config(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"torch_dtype": "bfloat16", "hidden_size": 8}')
    (base / "model.safetensors").write_bytes(b"weights")
    for _ in range(2):  # again over what is there
        made = peers.in_float32(base, tmp_path / "float32")
    config = json.loads((made / "config.json").read_text())
    assert config == {"torch_dtype": "float32", "dtype": "float32", "hidden_size": 8}
    assert (made / "model.safetensors").read_bytes() == b"weights"
    assert "bfloat16" in (base / "config.json").read_text()


def test_the_rows_are_a_data_set_of_its_kind(tmp_path):
    peers.write_rows(tmp_path, [{"prompt": "p", "answer": "a"}])
    entry = json.loads((tmp_path / "dataset_info.json").read_text())["bench"]
    row = json.loads((tmp_path / entry["file_name"]).read_text())[0]
    assert [row[column] for column in (entry["columns"]["prompt"], entry["columns"]["response"])] == ["p", "a"]


@pytest.mark.parametrize("has_bf16", [True, False])
def test_it_trains_with_the_settings_of_the_others(tmp_path, monkeypatch, has_bf16):
    from lora_recipes.config import runfile
    from lora_recipes.rendering import render
    from lora_recipes.support import processes

    import alpaca

    monkeypatch.setattr(processes, "has_bf16", lambda: has_bf16)
    folders = (tmp_path / "out", tmp_path / "train.json", tmp_path / "validation.json")
    (tmp_path / "run.yaml").write_text(render.render(alpaca.RECIPE, "lora", training.common(*folders, 128)))
    ours = runfile.load(tmp_path / "run.yaml").config
    its = peers.configuration(ours["base_model"], tmp_path, tmp_path / "out", 128)
    same = {
        "model_name_or_path": "base_model",
        "lora_rank": "lora_r",
        "lora_alpha": "lora_alpha",
        "lora_dropout": "lora_dropout",
        "cutoff_len": "sequence_len",
        "per_device_train_batch_size": "micro_batch_size",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "learning_rate": "learning_rate",
        "lr_scheduler_type": "lr_scheduler",
        "num_train_epochs": "num_epochs",
        "seed": "seed",
        "bf16": "bf16",
    }
    assert {name: its[name] for name in same} == {name: ours[key] for name, key in same.items()}
    assert its["lora_target"].split(",") == ours["lora_target_modules"]
