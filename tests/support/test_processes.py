"""Processes on a CPU: each has its share of the cores, and none trains on its own."""

import os
import subprocess
import sys

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
