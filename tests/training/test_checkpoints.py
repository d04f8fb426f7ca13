"""Checkpoints: one that is cut off anywhere is named and set aside, and a process that is told to end leaves one."""

import json
import os
import signal
from types import SimpleNamespace

from lora_recipes.config import runfile
from lora_recipes.support import signals, streams
from lora_recipes.training import checkpoints

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def run(run_file):
    found = runfile.load(run_file("peft"))
    found.output_dir.mkdir(parents=True)
    return found


def write(run, step, deepspeed=False):
    folder = run.output_dir / f"checkpoint-{step}"
    folder.mkdir()
    save_file({"a.lora_A.weight": torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": []}))
    for name in ("scheduler.pt", "rng_state.pth"):
        torch.save({"x": torch.ones(9)}, folder / name)
    if deepspeed:
        (folder / "latest").write_text(f"global_step{step}")
        (folder / f"global_step{step}").mkdir()
        torch.save({"x": 1}, folder / f"global_step{step}" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    else:
        torch.save({"x": 1}, folder / "optimizer.pt")
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("deepspeed", [False, True])
def test_the_newest_whole_checkpoint_is_gone_on_from(run, deepspeed, capsys):
    for step in (2, 10, 9):
        write(run, step, deepspeed)
    checkpoints.set_aside_incomplete(run)
    assert checkpoints.newest(run).endswith("/checkpoint-10") and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("trainer_state.json", "trainer_state.json"),
        ("optimizer.pt", "optimizer"),
        ("scheduler.pt", ""),
        ("rng_state.pth", ""),
        ("adapter_model.safetensors", "adapter_model.safetensors is missing or cut off"),
    ],
)
def test_a_checkpoint_cut_off_anywhere_is_set_aside_and_named(run, name, words, capsys):
    write(run, 2)
    for step, spoil in ((4, cut), (6, os.unlink)):
        if not words and spoil is os.unlink:  # files that only some trainers write
            continue
        spoil(write(run, step) / name)
        checkpoints.set_aside_incomplete(run)
        assert checkpoints.newest(run).endswith("/checkpoint-2")
        assert (run.output_dir / f"incomplete-checkpoint-{step}").is_dir()
        said = capsys.readouterr().err
        assert f"checkpoint-{step} is not whole" in said and (words or name) in said


def test_a_checkpoint_of_deepspeed_without_its_shards_is_set_aside(run):
    write(run, 2, deepspeed=True)
    for path in (write(run, 4, deepspeed=True) / "global_step4").iterdir():
        path.unlink()
    cut(next((write(run, 6, deepspeed=True) / "global_step6").iterdir()))
    checkpoints.set_aside_incomplete(run)
    assert checkpoints.newest(run).endswith("/checkpoint-2")


def test_a_checkpoint_set_aside_twice_replaces_the_first_one(run):
    for _ in range(2):
        (run.output_dir / "checkpoint-3").mkdir()
        checkpoints.set_aside_incomplete(run)
    assert [path.name for path in run.output_dir.iterdir()] == ["incomplete-checkpoint-3"]


def test_to_overwrite_removes_what_was_trained_and_leaves_what_was_measured(run):
    write(run, 2)
    (run.output_dir / "incomplete-checkpoint-3").mkdir()
    for name in ("run.yaml", "adapter_model.safetensors", "adapter_config.json", "result.json", "answers-test.jsonl"):
        (run.output_dir / name).touch()
    checkpoints.remove(run)
    assert sorted(path.name for path in run.output_dir.iterdir()) == ["answers-test.jsonl", "result.json", "run.yaml"]
    checkpoints.remove(run)


def test_nothing_is_resumed_unless_the_run_file_says_so(run_file):
    run = runfile.load(run_file("peft", "auto_resume_from_checkpoints=false"))
    run.output_dir.mkdir(parents=True)
    write(run, 2)
    assert checkpoints.newest(run) is None


@pytest.fixture(autouse=True)
def handlers():
    """Those of the tests are there again afterwards."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def told(callback, number=signal.SIGTERM, step=2, last=4):
    """A step at which a signal arrives; gives the control that the trainer then acts on."""
    args = SimpleNamespace(device="cpu", output_dir="out", eval_on_start=True)
    state = SimpleNamespace(global_step=0, max_steps=last, is_world_process_zero=True)
    control = SimpleNamespace(should_save=False, should_training_stop=False)
    callback.on_train_begin(args, state, control)
    os.kill(os.getpid(), number)
    state.global_step = step
    callback.on_step_end(args, state, control)
    return args, state, control


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_saves_after_the_step_and_ends_the_process(number, status, capfd):
    callback = checkpoints.CheckpointOnSignal()
    args, state, control = told(callback, number)
    assert control.should_save and control.should_training_stop
    with pytest.raises(SystemExit) as ended:
        callback.on_train_end(args, state, control)
    streams.restore()
    assert ended.value.code == status and "checkpoint-2 is saved in out" in capfd.readouterr().err


def test_a_signal_in_the_last_step_lets_the_run_end_and_the_handlers_are_as_before(capfd):
    callback = checkpoints.CheckpointOnSignal()
    callback.on_train_end(*told(callback, step=4))
    assert capfd.readouterr().err == ""
    assert {signal.getsignal(number) for number in signals.ENDING} == {signal.SIG_DFL}


def test_a_step_that_fails_after_a_signal_is_one_sentence(capfd):
    def train():
        told(callback)
        raise RuntimeError("DataLoader worker is killed by signal: Killed.")

    trainer = SimpleNamespace(train=train, add_callback=lambda _: None)
    callback = checkpoints.CheckpointOnSignal()
    checkpoints.make_interruptible(trainer)
    with pytest.raises(SystemExit) as ended:
        trainer.train()
    streams.restore()
    said = capfd.readouterr().err
    assert ended.value.code == 143 and said.startswith("told to end, and the step failed (DataLoader worker is killed")


def test_a_checkpoint_of_the_last_step_is_not_trained_further():
    state, taken = SimpleNamespace(global_step=4, max_steps=4), []

    def train():
        trainer.callback.on_train_begin(SimpleNamespace(), state, None)
        taken.append("a step")

    trainer = SimpleNamespace(train=train)
    trainer.add_callback = lambda callback: setattr(trainer, "callback", callback)
    checkpoints.make_interruptible(trainer)
    trainer.train()
    assert taken == []
    state.global_step = 3
    args = SimpleNamespace(eval_on_start=True)
    trainer.callback.on_train_begin(args, state, None)
    assert not args.eval_on_start  # made before the run was interrupted
