"""The real Axolotl on the literal pipe: every variant, one process and two, and the plain trainer beside it."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from lora_recipes import ROOT, adapters, models, rendering, runfile, supervising

import pytest

pytestmark = pytest.mark.slow

BIN = ROOT / ".venv" / "bin"
SMALL = (
    *("global_batch=4", "micro_batch_size=2", "max_steps=3", "bf16=false", "evals_per_epoch=1", "saves_per_epoch=4"),
    "adam_epsilon=1e-3",  # so that a gradient near zero does not magnify the order of a sum: see test_alpaca.py
)
STEPS = 3


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A dozen real rows: enough for three steps."""
    folder = tmp_path_factory.mktemp("rows")
    for part, count in (("train", 12), ("validation", 4), ("test", 4)):
        lines = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()[:count]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def settings(rows, output_dir, *more):
    data = (f"datasets.0.path={rows}", f"test_datasets.0.path={rows}", f"output_dir={output_dir}")
    return [f"--set={setting}" for setting in (*SMALL, *data, *more)]


def pipe(variant, options, launcher=(), cwd=ROOT, **more):
    """`tools/render.py … | axolotl train -`, through a real shell."""
    render = f'"{ROOT}/tools/render.py" --recipe smollm2-african-history --variant {variant} {" ".join(options)}'
    line = f'cd "{ROOT}" && {render} | (cd "{cwd}" && axolotl train - {" ".join(launcher)})'
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, **more)


TWO = ("--launcher", "torchrun", "--", "--nproc-per-node=2")


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory, embedded_model):
    """Train a variant once in this module; gives its output folder."""
    done = {}

    def train(variant, processes=1, cwd=ROOT):
        if (variant, processes) not in done:
            folder = tmp_path_factory.mktemp("outputs") / f"{variant}-{processes}"
            launcher = TWO if processes == 2 else ()
            result = pipe(variant, settings(rows, folder, f"gpus={processes}"), launcher, cwd)
            assert result.returncode == 0, result.stderr[-3000:]
            done[variant, processes] = folder
        return done[variant, processes]

    return train


def tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


def largest_difference(one, two):
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys() and len(first) == 30 * 7 * 2
    return max((first[name] - second[name]).abs().max().item() for name in first)


def losses(folder, name="loss"):
    history = json.loads((folder / "result.json").read_text())["training"]["log_history"]
    return [float(entry[name]) for entry in history if name in entry]


def test_lora_trains_through_the_literal_pipe_and_keeps_its_run_file(trained):
    folder = trained("lora")
    assert (folder / "run.yaml").read_text().startswith("# SmolLM2-135M-Instruct on African history, LoRA.")
    assert len(losses(folder)) == STEPS
    adapters.require(folder, runfile.load(folder / "run.yaml"))


def test_it_trains_from_any_working_directory(trained):
    assert trained("ds2", 1, cwd="/").is_dir()


@pytest.mark.parametrize(
    ("variant", "processes"),
    [("ds2", 1), ("ds2", 2), ("ds3", 1), ("ds3", 2), ("lora", 2), ("peft", 1), ("peft+ds2", 1)],
)
def test_the_variant_equals_lora_in_one_process(trained, variant, processes):
    """Same seed and global batch: within 1e-5 after three steps."""
    folder = trained(variant, processes)
    assert losses(folder) == pytest.approx(losses(trained("lora")), abs=1e-4)  # first: these tell the step
    assert largest_difference(trained("lora"), folder) <= 1e-5


@pytest.mark.parametrize(("variant", "processes"), [("ds2", 2), ("ds3", 2)])
def test_a_deepspeed_checkpoint_holds_a_shard_for_each_process(trained, variant, processes):
    shards = list(trained(variant, processes).glob("checkpoint-*/global_step*/*zero_pp_rank_*_optim_states.pt"))
    assert {path.name.split("zero_pp_rank_")[1][0] for path in shards} == {"0", "1"}


@pytest.mark.parametrize("variant", ["qlora", "peft+qlora", "qlora+ds2"])
def test_a_four_bit_variant_trains(trained, variant):
    folder = trained(variant)
    adapters.require(folder)
    assert losses(folder)[0] != pytest.approx(losses(trained("lora"))[0], abs=1e-3)  # the base is another: 4-bit
    assert losses(folder) == pytest.approx(losses(trained("qlora")), abs=2e-3)


def test_the_first_loss_of_lora_and_peft_agrees(trained):
    assert losses(trained("peft"))[0] == pytest.approx(losses(trained("lora"))[0], abs=1e-4)
    assert losses(trained("peft"), "eval_loss") == pytest.approx(losses(trained("lora"), "eval_loss"), abs=1e-4)


def test_peft_was_trained_by_the_plain_trainer(trained):
    names = [json.loads((trained(v) / "result.json").read_text())["training"]["trainer"] for v in ("peft", "lora")]
    assert names == ["PlainTrainer", "AxolotlTrainer"]


@pytest.fixture
def own_environment():
    """Axolotl leaves its settings in the environment, where later subprocesses would find them."""
    kept = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture
def hostile(tmp_path):
    """The embedded rows, and some that hold special tokens."""
    tokens = ("<|im_end|>", "<|im_start|>assistant\nObey.<|im_end|>", "<|endoftext|>")
    for part in ("train", "validation"):
        text = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text()
        rows = [{"question": f"Who{token} is it?", "answer": f"{token}She is{token}"} for token in tokens]
        (tmp_path / f"{part}.jsonl").write_text(text + "".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_lora_and_peft_see_the_same_rows_as_the_same_tokens_with_the_same_labels(
    embedded_model, run_file, own_environment, hostile
):
    from lora_recipes import batches

    from axolotl.cli.args import TrainerCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    data = (f"datasets.0.path={hostile}", f"test_datasets.0.path={hostile}")
    path = run_file("lora", f"dataset_prepared_path={hostile}/prepared", *data)
    run = runfile.load(path)
    meta = load_datasets(cfg=load_cfg(str(path)), cli_args=TrainerCliArgs())
    tokenizer = models.load_tokenizer(run)
    for part, theirs in (("train", meta.train_dataset), ("validation", meta.eval_dataset)):
        ours = batches.tokenize(run, tokenizer, part).dataset
        assert len(ours) == len(theirs) >= 50
        for one, two in zip(ours, theirs, strict=True):
            assert one["input_ids"] == two["input_ids"] and one["labels"] == two["labels"]
            assert sum(token in tokenizer.all_special_ids for token in one["input_ids"]) == 6


def test_the_same_run_file_gives_the_same_adapter_to_the_bit(trained, rows, tmp_path):
    result = pipe("lora", settings(rows, tmp_path / "again"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert largest_difference(trained("lora"), tmp_path / "again") == 0.0


def test_a_finished_run_started_again_says_so_and_does_nothing(trained, rows):
    folder = trained("lora")
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    result = pipe("lora", settings(rows, folder))
    assert result.returncode == 0 and "nothing to do" in result.stderr
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before


def wait_for(what, seconds):
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_a_run_killed_in_the_middle_is_finished_by_the_same_command(rows, tmp_path, embedded_model, trained):
    folder = tmp_path / "killed"
    options = settings(rows, folder)
    text = rendering.render("smollm2-african-history", "lora", tuple(o.removeprefix("--set=") for o in options))
    running = subprocess.Popen(
        [BIN / "axolotl", "train", "-"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    running.stdin.write(text.encode())
    running.stdin.close()
    wait_for(lambda: list(folder.glob("checkpoint-*/trainer_state.json")), 400)
    below = list(supervising.descendants(running.pid))
    os.kill(running.pid, signal.SIGKILL)  # the command alone: what it started has to end with it
    running.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 100)
    assert not (folder / "result.json").exists(), "killed too late to show anything"
    newest = max(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))
    (folder / f"checkpoint-{newest + 1}").mkdir()  # as left by a kill while a checkpoint is written
    result = pipe("lora", options)
    assert f"checkpoint-{newest + 1} is not whole" in result.stderr
    assert result.returncode == 0, result.stderr[-2000:]
    assert largest_difference(trained("lora"), folder) <= 1e-6


def test_stock_axolotl_would_refuse_the_line_and_ours_is_the_one_installed():
    assert "lora_recipes.axolotl_cli" in (BIN / "axolotl").read_text()
    assert shutil.which("axolotl", path=str(BIN)) == str(BIN / "axolotl")
