"""The plain trainer: what it takes, what it refuses, and that it survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.rendering import ingredients, render
from lora_recipes.training import settings

import click
import pytest

SMALL = (
    *("global_batch=4", "micro_batch_size=2", "max_steps=4", "bf16=false", "evals_per_epoch=1", "save_steps=1"),
    "adam_epsilon=1e-3",  # so that a gradient near zero does not magnify the order of a sum: see test_alpaca.py
)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sample_packing=true", ["sample_packing", "supports False only"]),
        ("val_set_size=0.1", ["val_set_size"]),
        ("torch_compile_mode=max-autotune", ["torch_compile_mode", "does not support this key"]),
        ("pad_to_sequence_len=true", ["pad_to_sequence_len", "supports False only"]),
        ("plugins=[axolotl.integrations.liger.LigerPlugin]", ["plugins.0", "LigerPlugin"]),
        ("adapter=qlora", ["adapter", "go together"]),
        ("excess_length_strategy=truncate", ["'drop' or 'raise'"]),
    ],
)
def test_a_key_it_does_not_support_is_an_error_never_ignored(run_file, setting, words):
    run = runfile.load(run_file("peft", setting))
    with pytest.raises(click.ClickException) as caught:
        settings.read(run)
    assert all(word in caught.value.message for word in ["line", *words]), caught.value.message


@pytest.mark.parametrize(
    ("recipe", "variant"),
    [
        (recipe, variant)
        for recipe in ingredients.recipe_names()
        if recipe != "lorafrica-axolotl-as-published"  # a type of Axolotl's own, and packing
        for variant in render.checked_in(recipe)
    ],
)
def test_every_checked_in_run_file_is_supported(recipe, variant):
    settings.read(runfile.load(ROOT / "recipes" / recipe / f"{variant}.yaml"))


@pytest.mark.parametrize(
    ("rows", "setting", "steps"), [(483, "num_epochs=1", 61), (483, "num_epochs=2", 122), (9, "max_steps=7", 7)]
)
def test_steps_are_counted_as_transformers_counts_them(run_file, rows, setting, steps):
    assert runfile.load(run_file("peft", setting)).steps(rows) == steps


def test_0_is_a_seed_and_none_is_42(run_file, tiny, monkeypatch):
    from lora_recipes.models import loading
    from lora_recipes.training import batches, lora_model

    import torch

    lines = [{"input_ids": [number], "labels": [number]} for number in range(20)]
    monkeypatch.setattr(batches.rows, "load_parts", lambda run, part: [part])
    monkeypatch.setattr(batches, "_tokenized", lambda *_: batches_of(lines))

    def batches_of(rows):
        import datasets

        return datasets.Dataset.from_list(rows)

    def made(seed):
        run = runfile.load(run_file("peft", f"seed={seed}", f"base_model={tiny}", "bf16=false"))
        order = batches.tokenize(run, loading.load_tokenizer(run), "train").dataset["input_ids"]
        weights = lora_model.attach_lora(run).state_dict()
        return [row[0] for row in order], next(part for name, part in weights.items() if "lora_A" in name)

    (order_0, weight_0), (order_42, weight_42), (order, weight) = made(0), made(42), made("null")
    assert order == order_42 != order_0
    assert torch.equal(weight, weight_42) and not torch.equal(weight, weight_0)


@pytest.fixture
def train(libraries):
    """Run tools/train.py in a fork: `train(path, "--overwrite", env=…)`."""
    return lambda path, *options, **more: libraries.run([ROOT / "tools" / "train.py", path, *options], **more)


@pytest.fixture
def small(run_file, tmp_path, embedded_model):
    rows = tmp_path / "rows"
    rows.mkdir()
    for part in ("train", "validation"):
        lines = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()[:8]
        (rows / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    data = (f"datasets.0.path={rows}", f"test_datasets.0.path={rows}")

    def write(variant="peft", *more):
        return run_file(variant, *SMALL, *data, *more)

    return write


def tensors(run):
    from safetensors.torch import load_file

    return load_file(run.output_dir / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_target_module_that_does_not_exist_is_an_error(small, train):
    done = train(small("peft", "lora_target_modules=[q_proj, qkv_proj]"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "lora_target_modules.1: no module" in done.stderr and "qkv_proj; it has" in done.stderr


@pytest.mark.slow
def test_it_trains_in_an_environment_without_axolotl(small):
    path = small()
    code = (
        "import runpy, sys\n"
        "sys.modules['axolotl'] = None\n"  # an import of it is now an ImportError
        f"sys.argv = ['train.py', {str(path)!r}]; sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'train.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "" and "step 4/4  loss" in done.stderr
    result = json.loads((runfile.load(path).output_dir / "result.json").read_text())
    metrics = result["training"]["metrics"]
    assert metrics["steps"] == 4 and metrics["rows"] == 8
    assert metrics["trainable_parameters"] == 4884480  # r=16 on the seven linear layers of 30 blocks
    assert metrics["last_train_loss"] < metrics["first_train_loss"]
    assert metrics["tokens_per_second"] > 0 and "flop_share" not in metrics


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["peft", "peft+ds2"])
def test_two_processes_equal_one(small, train, variant, tmp_path, tiny):
    one = small("peft", f"base_model={tiny}", f"output_dir={tmp_path}/one")
    assert train(one).returncode == 0
    first = runfile.load(one)
    two = small(variant, f"base_model={tiny}", "gpus=2", f"output_dir={tmp_path}/two")
    strange = {**os.environ, "ACCELERATE_MIXED_PRECISION": "bf16"}  # the run file decides, not the environment
    torchrun = [
        str(ROOT / ".venv" / "bin" / "torchrun"),
        "--nproc-per-node=2",
        str(ROOT / "tools" / "train.py"),
        str(two),
    ]
    done = subprocess.run(torchrun, capture_output=True, text=True, env=strange)
    assert done.returncode == 0, done.stderr[-3000:]
    a, b = tensors(first), tensors(runfile.load(two))
    assert max((a[name] - b[name]).abs().max().item() for name in a) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["peft", "peft+ds2"])
def test_two_processes_go_on_as_two_and_not_as_one(small, train, variant, tmp_path, tiny):
    steps = ("max_steps=2", "saves_per_epoch=null", "save_steps=1")
    path = small(variant, f"base_model={tiny}", "gpus=2", f"output_dir={tmp_path}/out", *steps)
    folder = runfile.load(path).output_dir
    torchrun = [str(ROOT / ".venv" / "bin" / "torchrun"), "--nproc-per-node=2", str(ROOT / "tools" / "train.py")]
    done = subprocess.run([*torchrun, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    whole = tensors(runfile.load(path))
    (folder / "adapter_model.safetensors").unlink()  # as a kill before the last step leaves it
    shutil.rmtree(folder / "checkpoint-2")
    one = train(path)
    assert one.returncode == 1 and "is of a run with 2 processes, this one has 1" in one.stderr, one.stderr[-3000:]
    done = subprocess.run([*torchrun, str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and "going on from" in done.stderr, done.stderr[-3000:]
    again = tensors(runfile.load(path))
    assert max((whole[name] - again[name]).abs().max().item() for name in whole) <= 1e-6


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_and_ends_the_same(small, train, libraries, tmp_path, tiny):
    long = (f"base_model={tiny}", "max_steps=40", "evals_per_epoch=null")
    whole = small("peft", f"output_dir={tmp_path}/whole", *long)
    assert train(whole).returncode == 0
    expected = tensors(runfile.load(whole))
    killed = small("peft", f"output_dir={tmp_path}/killed", *long)
    run = runfile.load(killed)
    running = libraries.start([ROOT / "tools" / "train.py", killed])
    while not list(run.output_dir.glob("checkpoint-*/trainer_state.json")):
        assert os.path.exists(f"/proc/{running.pid}")
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().returncode == -signal.SIGKILL
    assert not (run.output_dir / "result.json").exists(), "killed too late to show anything"
    (run.output_dir / "checkpoint-99").mkdir()  # as left by a kill while a checkpoint is written
    done = train(killed)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "checkpoint-99 is not whole" in done.stderr and "going on from" in done.stderr
    assert all((tensors(run)[name] - expected[name]).abs().max() <= 1e-6 for name in expected)
    again = train(killed)
    assert again.returncode == 0 and "nothing to do" in again.stderr
    other = small("peft", f"output_dir={tmp_path}/killed", *long, "seed=1")
    refused = train(other)
    assert refused.returncode == 1 and "of another run file; train with --overwrite" in refused.stderr
    done = train(other, "--overwrite")
    assert done.returncode == 0 and "going on" not in done.stderr, done.stderr[-2000:]
    assert any((tensors(run)[name] - expected[name]).abs().max() > 1e-6 for name in expected)


@pytest.mark.slow
def test_a_run_file_that_cannot_be_trained_overwrites_nothing(small, train, tmp_path):
    path = small("peft", "datasets.0.path=nowhere.jsonl")
    adapter = runfile.load(path).output_dir / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.touch()
    done = train(path, "--overwrite")
    assert done.returncode == 1 and "nowhere.jsonl" in done.stderr and adapter.exists(), done.stderr


@pytest.mark.slow
def test_wandb_without_a_login_is_said_before_the_model_is_loaded(small, train):
    path = small("peft", "wandb_project=p")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {
        "HOME": str(path.parent)
    }
    done = train(path, env=environment)
    assert done.returncode == 1 and "wandb_project: no W&B login" in done.stderr and "wandb login" in done.stderr


def test_stdin_for_several_processes_is_wrong_usage():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "train.py"), "-"],
        input="",
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": "2"},
    )
    assert done.returncode == 2 and "only one can read stdin" in done.stderr


@pytest.mark.slow
def test_compiled_layers_train_the_same_adapter(small, train, tmp_path):
    found = []
    for value in ("false", "true"):
        path = small("peft", f"torch_compile={value}", "lora_dropout=0.0", f"output_dir={tmp_path}/{value}")
        done = train(path)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(tensors(runfile.load(path)))
    differences = [(found[0][name] - found[1][name]).abs().max().item() for name in found[0]]
    assert 0 < max(differences) <= 1e-6  # another order of sums: compiled, and no more than that
