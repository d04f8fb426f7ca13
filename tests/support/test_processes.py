"""Processes on a CPU: each has its share of the cores, and none trains on its own."""

import os
import subprocess
import sys

from lora_recipes import ROOT
from lora_recipes.support import processes

import click
import pytest

CORES = len(os.sched_getaffinity(0))


@pytest.mark.skipif(not processes.on_cpu(), reason="an accelerator is here: the launcher's setting is left alone")
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "1"}, CORES),  # as accelerate launch and torchrun set it
        ({"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(CORES)}, 1),
        ({"OMP_NUM_THREADS": "2", "LOCAL_WORLD_SIZE": str(CORES)}, 2),  # a user's own choice stands
    ],
)
def test_the_processes_share_the_cores(environment, threads):
    share = "from lora_recipes.support import processes; processes.share_cores()"
    code = f"import torch; {share}; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.strip() == str(threads), done.stderr


def test_processes_that_did_not_join_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.require_world(2)
    with pytest.raises(click.ClickException, match="2 processes were started and the trainer joined 1"):
        processes.require_world(1)


@pytest.mark.parametrize("there", [True, False])
def test_a_processor_that_emulates_bf16_is_said_once(monkeypatch, capsys, there):
    monkeypatch.setattr(processes, "on_cpu", lambda: True)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: there)
    processes.warn_of_emulated_bf16.cache_clear()
    processes.warn_of_emulated_bf16()
    processes.warn_of_emulated_bf16()
    assert capsys.readouterr().err.count("--set bf16=false") == (not there)
    processes.warn_of_emulated_bf16.cache_clear()


def test_a_lock_that_a_killed_build_left_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311_cpu" / "deepspeed_shm_comm").mkdir(parents=True)
    processes._say_builds_under_way()
    assert capsys.readouterr().err == ""
    lock = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    lock.touch()
    processes._say_builds_under_way()
    assert f"{lock}: delete that file" in capsys.readouterr().err


def test_deepspeed_is_built_with_the_environments_own_ninja(monkeypatch):
    monkeypatch.setenv("PATH", "/usr/bin")
    processes.use_own_programs()
    processes.use_own_programs()
    assert os.environ["PATH"] == f"{os.path.dirname(sys.executable)}{os.pathsep}/usr/bin"


LAUNCHER = """
import subprocess, sys, time
sys.path.insert(0, {tools!r})
trainer = "import signal, sys, time\\nsys.path.insert(0, {tools!r})\\n" \
    "from lora_recipes.support import processes\\n" \
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved', flush=True)))\\n" \
    "processes.end_with_launcher()\\nprint('ready', flush=True)\\ntime.sleep(60)"
subprocess.run([sys.executable, "-c", trainer], start_new_session=True)  # as torchrun starts them
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal is Linux's")
@pytest.mark.parametrize("mark", [{"TORCHELASTIC_RUN_ID": "x"}, {processes.LAUNCHER: "7"}, {"WORLD_SIZE": "2"}])
def test_a_trainer_is_told_when_its_launcher_was_killed(mark):
    code = LAUNCHER.format(tools=str(ROOT / "tools"))
    launcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ | mark)
    assert launcher.stdout.readline() == "ready\n"
    launcher.kill()
    assert launcher.stdout.read() == "saved\n"
    launcher.wait()


def test_without_a_launcher_a_training_outlives_its_shell(monkeypatch):
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda _: pytest.fail("no launcher is there to end with"))
    processes.end_with_launcher()


@pytest.mark.parametrize(("environment", "own"), [({"TORCHELASTIC_RUN_ID": "x"}, True), ({}, False)])
def test_under_torchrun_a_signal_to_the_trainer_s_group_spares_its_loaders(environment, own):
    code = (
        "import os; from lora_recipes.support import processes; processes.keep_loaders(); processes.keep_loaders()\n"
        "if os.fork() == 0: print(os.getpgrp() == os.getpid(), flush=True); os._exit(0)\n"
        "os.wait()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout == f"{own}\n", done.stderr
