#!/usr/bin/env python3
"""LLaMA-Factory as a peer of bench/training.py: an environment of its own, and the run file it trains from.

Its pins exclude this project's transformers, peft, trl and datasets, so it cannot share .venv. What is installed
beside it is pinned (CONSTRAINTS): of 0.9.5 the newest that its own pins allow, transformers 5.6.0, peft 0.18.1,
trl 0.24.0, accelerate 1.11.0 and datasets 4.0.0, on the torch of .venv (measured with 2.13.0).
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_recipes import ROOT

import click
import measuring

VERSION = "0.9.5"
CONSTRAINTS = Path(__file__).with_name("llamafactory-constraints.txt")
HOME = ROOT / ".cache" / "bench" / "llamafactory"
ROWS = "llamafactory"
"""The folder of the rows, below the benchmark's."""
COMMAND = HOME / "bin" / "llamafactory-cli"
SHOWN = ("llamafactory", "torch", "transformers", "peft", "trl", "accelerate")
STUB = """[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "{name}"
version = "{version}"
[tool.setuptools]
py-modules = {modules}
"""
STUBS: dict[str, tuple[str, list[str]]] = {"torchaudio": ("2.4.0", ["torchaudio"]), "torchvision": ("0.19.0", [])}
"""Packages for sound and pictures that LLaMA-Factory asks for: the oldest version that it takes, so that no limit in
the user's own settings of pip is below it, and the modules that a stand-in has.

They have to fit torch's own build, and those of the package index fit the CUDA build only: with the CPU build
the real torchvision ends every start in "operator torchvision::nms does not exist". LLaMA-Factory imports
torchaudio in any case, and transformers does without torchvision where it finds no such module.
"""


def absent() -> str:
    """Why LLaMA-Factory cannot be run here; '' when it can."""
    if not COMMAND.is_file():
        return f"LLaMA-Factory {VERSION} is not installed; run `bench/peers.py --install`"
    found = versions().get("llamafactory")
    return "" if found == VERSION else f"{HOME} holds LLaMA-Factory {found}, not {VERSION}; delete it and install anew"


def versions() -> dict[str, str]:
    """Of LLaMA-Factory and what decides its speed; empty where it is not installed."""
    folders = [str(folder) for folder in HOME.glob("lib/python*/site-packages")]
    found = {one.name.lower(): one.version for one in metadata.distributions(path=folders)} if folders else {}
    return {name: found[name] for name in SHOWN if name in found}


def install() -> None:
    """Make the environment, or finish one that was begun. Raises click.ClickException where a step fails."""
    if sys.version_info < (3, 11):
        raise click.ClickException(
            f"LLaMA-Factory {VERSION} needs Python 3.11 or newer; start this with one that has it."
        )
    torch = metadata.version("torch")
    _run("making the environment", sys.executable, "-m", "venv", str(HOME))
    with tempfile.TemporaryDirectory() as folder:
        wanted = (f"torch=={torch}", f"llamafactory=={VERSION}", *_stubs(Path(folder)))
        pip = (str(HOME / "bin" / "pip"), "install", "--constraint", str(CONSTRAINTS))
        plan = Path(folder) / "plan.json"
        _run("looking at what would be installed", *pip, "--dry-run", "--report", str(plan), *wanted)
        refuse_cuda(json.loads(plan.read_text(encoding="utf-8")))
        _run(f"installing LLaMA-Factory {VERSION} (minutes)", *pip, *wanted)
    click.echo(", ".join(f"{name} {version}" for name, version in versions().items()), err=True)


def _stubs(folder: Path) -> list[str]:
    """Source folders that pip builds the stand-ins from."""
    for name, (version, modules) in STUBS.items():
        (folder / name).mkdir()
        text = STUB.format(name=name, version=version, modules=json.dumps(modules))
        (folder / name / "pyproject.toml").write_text(text, encoding="utf-8")
        for module in modules:
            (folder / name / f"{module}.py").write_text('"""Nothing: text needs none of it."""\n', encoding="utf-8")
    return [str(folder / name) for name in STUBS]


def refuse_cuda(plan: dict[str, Any]) -> None:
    """Raises click.ClickException when pip's report names a package of CUDA: this is measured on a CPU."""
    names = sorted(one["metadata"]["name"] for one in plan["install"])
    if cuda := [name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"]:
        raise click.ClickException(
            f"pip would bring {cuda[0]} and {len(cuda) - 1} more packages for CUDA, and this benchmark runs on the "
            "CPU; set pip to an index with PyTorch's CPU build, run `make setup` with it, and install again."
        )


def _run(words: str, *command: str) -> None:
    click.echo(f"{words} …", err=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stdout.strip().splitlines()[-12:])  # pip names what conflicts before its last line
        raise click.ClickException(f"{words} failed; see to it and run the same command again:\n{last}")


def in_float32(base: Path, folder: Path) -> Path:
    """The base model as `folder`, its config naming float32: LLaMA-Factory loads a base in what its config names,
    whatever its own `bf16` says.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in base.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").unlink()
    named = {name: "float32" for name in ("dtype", "torch_dtype")}  # the newer and the older name
    (folder / "config.json").write_text(json.dumps(config | named), encoding="utf-8")
    return folder


def configuration(base: str, rows: Path, output: Path, sequence_len: int, **more: Any) -> dict[str, Any]:
    """What `llamafactory-cli train` reads: the bench's training, without what is there to save GPU memory.

    `rows` is a folder with dataset_info.json; its prompts are whole texts, so the template adds nothing.
    LLaMA-Factory recomputes activations by default, which costs a third of the speed and is off here.
    """
    return {
        "model_name_or_path": base,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target": "q_proj,k_proj,v_proj,o_proj",
        "dataset_dir": str(rows),
        "dataset": "bench",
        "template": "empty",
        "cutoff_len": sequence_len,
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "output_dir": str(output),
        "overwrite_cache": True,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "group_by_length",
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 1.0,
        "bf16": measuring.dtype() == "bfloat16",
        "use_cpu": True,
        "seed": 42,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding",
        "dataloader_pin_memory": False,
        **more,
    }


def configuration_path(work: Path, name: str) -> Path:
    return work / f"{name}.llamafactory.yaml"


def write_configuration(work: Path, name: str, base: str, sequence_len: int, **more: Any) -> None:
    """Write the run file of a way below the benchmark's folder, in which the rows are."""
    import yaml

    base = base if measuring.dtype() == "bfloat16" else str(in_float32(Path(base), work / "base"))
    written = configuration(base, work / ROWS, work / "out" / name, sequence_len, **more)
    configuration_path(work, name).write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    """Rows with `prompt` and `answer`, whole texts, as LLaMA-Factory's data set `bench`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"bench": {"file_name": "bench.json", "columns": {"prompt": "prompt", "response": "answer"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


@click.command()
@click.option("--install", "wanted", is_flag=True, help="make the environment of LLaMA-Factory")
def main(wanted: bool) -> None:
    """Install LLaMA-Factory beside this project, or say which is there.

    It takes some 2 GB under .cache/bench; delete that folder to be rid of it.

    \b
    Example:
      bench/peers.py --install
    """
    if wanted and absent():
        install()
    if reason := absent():
        raise click.ClickException(f"{reason}.")
    click.echo(json.dumps(versions()))


if __name__ == "__main__":
    main()
