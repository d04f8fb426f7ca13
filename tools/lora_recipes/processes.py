"""Several processes on a CPU: what accelerate and DeepSpeed need to join them over gloo.

Measured with accelerate 1.13, DeepSpeed 0.18.9 and torch 2.13: without this, accelerate finds no
accelerator and counts one process, DeepSpeed asks for NCCL, and two processes train the same rows
twice without a word. On a machine with a GPU nothing here does anything.
"""

import functools
import os
import socket
from typing import Any

from lora_recipes import supervising

import click


def on_cpu() -> bool:
    """Whether torch has no accelerator here."""
    import torch

    return not torch.accelerator.is_available()


def has_bf16() -> bool:
    """Whether products in bf16 are computed as such; a CPU without AVX-512 (on x86) emulates them, and crawls."""
    import torch

    if not on_cpu() or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def warn_of_emulated_bf16() -> None:
    """Say, once, that a run in bf16 will crawl here."""
    if is_main() and not has_bf16():
        click.echo(
            "this processor has no bf16 and emulates it, many times slower than float32: --set bf16=false", err=True
        )


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


def share_cores() -> None:
    """Give each process its share of the cores: launchers set OMP_NUM_THREADS=1, meant for GPUs."""
    if not on_cpu() or os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def join(deepspeed: bool) -> None:
    """Join the processes of this run over gloo, each with its share of the cores; one process needs
    gloo for DeepSpeed alone.

    Call it before accelerate's or DeepSpeed's first use.
    """
    share_cores()
    if world_size() > 1:
        supervising.end_with_parent()  # torchrun leaves its processes behind when it is killed
    if not on_cpu() or (world_size() == 1 and not deepspeed):
        return
    import torch
    from accelerate.state import DistributedType, PartialState

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))

    def gloo(self: Any, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = gloo
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    if deepspeed:
        _gather_without_gradient()


def _gather_without_gradient() -> None:
    """torch's gloo writes into views of the gathered tensor, which autograd forbids."""
    import torch
    from deepspeed.comm.torch import TorchBackend

    TorchBackend.all_gather_into_tensor = torch.no_grad()(TorchBackend.all_gather_into_tensor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_world(found: int) -> None:
    """Fail when the trainer counts other processes than were started: each would train alone."""
    if found != world_size():
        raise click.ClickException(
            f"{world_size()} processes were started and the trainer joined {found}: each would train on its own; "
            "name lora_recipes.plugin.CpuPlugin under plugins: on a CPU, or start with torchrun."
        )


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
