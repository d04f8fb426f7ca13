"""Processes on a CPU: each has its share of the cores, and none trains on its own."""

import os
import subprocess
import sys

from lora_recipes import processes

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
    code = "from lora_recipes import processes; processes.share_cores(); import torch; print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.stdout.strip() == str(threads), done.stderr


def test_processes_that_did_not_join_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.require_world(2)
    with pytest.raises(click.ClickException, match="2 processes were started and the trainer joined 1"):
        processes.require_world(1)
