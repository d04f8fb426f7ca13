"""The processes of a run and their devices: one device for each process, on a CPU joined over gloo.

Measured with accelerate 1.13, DeepSpeed 0.18.9 and torch 2.13: without `join`, accelerate finds no accelerator on a
CPU and counts one process, DeepSpeed asks for NCCL, and each of two processes trains on all rows.
"""

import contextlib
import functools
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

_CPU_PLUGIN = "lora_recipes.plugin.CpuPlugin"
"""A run file that names it is meant for a CPU."""

_EXHAUSTED = ("out of memory", "can't allocate memory")
"""In the words of torch's errors for a GPU, for a library's call on it, and for a CPU."""


def on_cpu() -> bool:
    """Whether torch has no accelerator here."""
    import torch

    return not torch.accelerator.is_available()


def meant_for_cpu(plugins: Any) -> bool:
    """Whether a run file with these `plugins:` is meant for a CPU."""
    return isinstance(plugins, list) and _CPU_PLUGIN in plugins


def require_accelerator(name: str, plugins: Any) -> None:
    """Raises click.ClickException where a run file that is meant for a GPU would train on the CPU, for days.

    name, plugins: of the run file. An old driver is enough to make a machine with a GPU look like one without.
    """
    if not on_cpu() or meant_for_cpu(plugins):
        return
    import torch

    if not _has_nvidia_driver():
        reason = "no GPU is found here"
    elif torch.version.cuda is None:
        reason = "a GPU is here, but the installed torch is a build for CPUs"
    else:
        reason = (
            f"a GPU is here, but torch cannot use it: its driver is too old for CUDA {torch.version.cuda}, "
            "or CUDA_VISIBLE_DEVICES hides it"
        )
    raise click.ClickException(
        f"{name}: {reason}; to train on the CPU all the same, name {_CPU_PLUGIN} under plugins: in the run file."
    )


def _has_nvidia_driver() -> bool:
    """Whether or not torch can use it."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists()


def one_device(trainer: Any) -> None:
    """Let a process of transformers' Trainer train on one GPU, and say so where there are more.

    Without torchrun the Trainer would wrap the model in torch's DataParallel. That splits a batch by its first
    dimension, which rows laid end to end do not have, and multiplies the run file's global batch.
    """
    arguments = trainer.args
    if arguments.n_gpu <= 1:
        return
    click.echo(
        f"{arguments.n_gpu} GPUs are here, and one process trains on one of them; to use all, render the run file "
        f"with --set gpus={arguments.n_gpu} and start it with torchrun --nproc-per-node={arguments.n_gpu}",
        err=True,
    )
    arguments._n_gpu = 1
    trainer._train_batch_size = arguments.train_batch_size  # was made of n_gpu


def has_bf16() -> bool:
    """Whether the device computes in bf16; an x86 processor without AVX-512 emulates it, many times slower."""
    import torch

    if not on_cpu() or not torch.backends.mkldnn.is_available():
        return True
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@functools.cache
def warn_of_emulated_bf16() -> None:
    """Say, once, that a run in bf16 will be slow here."""
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
    """Join the processes of this run, on a CPU over gloo and each with its share of the cores.

    One process joins itself for DeepSpeed, which otherwise looks for MPI. Call it before accelerate's or DeepSpeed's
    first use.
    """
    share_cores()
    if deepspeed:
        use_own_programs()  # two versions of ninja would each rebuild what the other has built, for minutes
        _say_builds_under_way()
    if deepspeed and world_size() == 1:
        _set_rendezvous_of_one()
    if not on_cpu() or (world_size() == 1 and not deepspeed):
        return
    import torch
    from accelerate.state import DistributedType, PartialState

    def gloo(self: Any, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
        return "gloo", DistributedType.MULTI_CPU

    PartialState._prepare_backend = gloo
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else cpu:0, to which torch.load brings no optimizer back
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    if deepspeed:
        _gather_without_gradient()


def use_own_programs() -> None:
    """Put the programs of this Python's environment first in PATH, as they are where it is activated."""
    own = str(Path(sys.executable).parent)
    if (path := os.environ.get("PATH", os.defpath)).split(os.pathsep)[0] != own:
        os.environ["PATH"] = os.pathsep.join([own, path])


def _say_builds_under_way() -> None:
    """Name the lock of an extension's build: torch waits for it in silence, forever where the build was killed."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("*/*/lock") if is_main() else ():
        click.echo(
            f"waiting for another process to build {lock.parent.name} of DeepSpeed; where none does, a killed one left "
            f"{lock}: delete that file",
            err=True,
        )


def _set_rendezvous_of_one() -> None:
    """Set what torchrun would set for one process."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(_free_port()))


def _gather_without_gradient() -> None:
    """Gather without autograd, which forbids what torch's gloo does: writing into views of the gathered tensor."""
    import torch
    from deepspeed.comm.torch import TorchBackend

    TorchBackend.all_gather_into_tensor = torch.no_grad()(TorchBackend.all_gather_into_tensor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_world(found: int) -> None:
    """Raises click.ClickException when the trainer found other than the started processes: each would train alone."""
    if found != world_size():
        raise click.ClickException(
            f"{world_size()} processes were started and the trainer joined {found}: each would train on its own; "
            "name lora_recipes.plugin.CpuPlugin under plugins: on a CPU, or start with torchrun."
        )


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextlib.contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn an out-of-memory error into a click.ClickException that ends in the remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _EXHAUSTED):
            raise
        said = str(error).split(". ")[0].splitlines() or ["no more memory"]
        raise click.ClickException(f"out of memory ({said[0]}); {remedy}") from None
