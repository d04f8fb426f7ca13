"""What only a GPU run meets, on a CPU: the card, its driver and NCCL are simulated."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from lora_recipes import ROOT
from lora_recipes.config import runfile, yamlfile
from lora_recipes.data import prompts
from lora_recipes.models import loading
from lora_recipes.support import processes
from lora_recipes.training import batches, memory, settings, trainer

import click
import pytest
import torch
import transformers
from tiny import padding_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

CPU = ("plugins=[lora_recipes.plugin.CpuPlugin]",)
TWO_STEPS = ("bf16=false", "micro_batch_size=2", "global_batch=4", "max_steps=2", "evals_per_epoch=null", "tf32=null")


@pytest.fixture
def small(run_file, tiny, tmp_path):
    """A run file of two steps on the tiny model and few rows."""
    (tmp_path / "rows").mkdir()
    for part in ("train", "validation"):
        lines = (ROOT / "data" / "african_history" / f"{part}.jsonl").read_text().splitlines()[:8]
        (tmp_path / "rows" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    rows = tmp_path / "rows"
    data = (f"datasets.0.path={rows}", f"test_datasets.0.path={rows}", "dataset_prepared_path=null")
    return lambda variant="peft", *more: run_file(variant, f"base_model={tiny}", *TWO_STEPS, *data, *more)


def trained(path):
    result = json.loads((runfile.load(path).output_dir / "result.json").read_text())["training"]
    assert result["metrics"]["steps"] == 2
    return result


# Devices -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch):
    """transformers counts two GPUs; what is put on one is put on the CPU."""
    load = transformers.AutoModelForCausalLM.from_pretrained

    def loaded(*args, device_map, **options):
        assert device_map == {"": 0}
        return load(*args, device_map={"": "cpu"}, **options)

    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)


@pytest.mark.slow
def test_of_several_gpus_one_process_trains_on_one_and_says_so(small, gpus, monkeypatch, capsys):
    seen = []
    loss = trainer.PlainTrainer.compute_loss
    monkeypatch.setattr(
        trainer.PlainTrainer,
        "compute_loss",
        lambda self, model, inputs, *args, **more: (
            seen.append((type(model).__name__, len(inputs["row_parts"]))) or loss(self, model, inputs, *args, **more)
        ),
    )
    path = small("peft")
    trainer.train(runfile.load(path))
    trained(path)
    assert seen == [("PeftModelForCausalLM", 2)] * 4  # no DataParallel, and two rows as the run file says, not four
    said = [line for line in capsys.readouterr().err.splitlines() if "2 GPUs are here" in line]
    assert len(said) == 1 and "--set gpus=2" in said[0] and "torchrun --nproc-per-node=2" in said[0]


def test_one_gpu_is_not_worth_a_word(capsys):
    made = SimpleNamespace(args=SimpleNamespace(n_gpu=1))
    processes.one_device(made)
    assert capsys.readouterr().err == "" and not hasattr(made, "_train_batch_size")


@pytest.mark.parametrize(("variant", "there"), [("peft", True), ("peft+ds2", True), ("peft+ds3", False)])
def test_the_base_is_loaded_where_it_is_trained_unless_zero3_shards_it(run_file, monkeypatch, variant, there):
    """The trial of padding_free then tries the kernel that will run."""
    given = {}

    def loaded(name, **options):
        given.update(options)
        return SimpleNamespace(config=SimpleNamespace())

    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", loaded)
    monkeypatch.setenv("LOCAL_RANK", "1")
    run = runfile.load(run_file(variant, "bf16=false", f"deepspeed={ROOT}/deepspeed_configs/zero{variant[-1]}.json"))
    live = transformers.integrations.HfDeepSpeedConfig(run.deepspeed) if variant == "peft+ds3" else None
    loading.load_base(run)
    assert given.get("device_map") == ({"": 1} if there else None)
    del live


# One process under DeepSpeed ------------------------------------------------------------------------------------------


def test_one_process_under_deepspeed_needs_no_launcher_on_a_gpu_either(monkeypatch):
    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    monkeypatch.setattr(os, "environ", {})
    processes.join(deepspeed=False)
    assert os.environ == {}
    processes.join(deepspeed=True)
    port = int(os.environ.pop("MASTER_PORT"))
    os.environ.pop("PATH")  # test_processes.py looks at it
    ones = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    assert os.environ == ones and 0 < port < 65536


SIMULATED = """
import sys
sys.path.insert(0, {tools!r})
from lora_recipes.support import processes
from lora_recipes.config import runfile, yamlfile
from lora_recipes.training import trainer
import transformers
from accelerate.state import DistributedType, PartialState
processes.on_cpu = lambda: False
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_CPU)  # for NCCL
processes._gather_without_gradient()
load = transformers.AutoModelForCausalLM.from_pretrained
def loaded(*args, **options):
    if "device_map" in options:
        options["device_map"] = {{"": "cpu"}}
    return load(*args, **options)
transformers.AutoModelForCausalLM.from_pretrained = loaded
trainer.train(runfile.load(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["peft+ds2", "peft+ds3"])
@pytest.mark.parametrize("where", ["on the CPU", "on a GPU, gloo standing for NCCL"])
def test_one_plain_process_trains_under_deepspeed(small, variant, where):
    path = small(variant)
    tools = ROOT / "tools"
    program = [str(tools / "train.py")] if where == "on the CPU" else ["-c", SIMULATED.format(tools=str(tools))]
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    alone = {name: value for name, value in os.environ.items() if name not in launched}
    done = subprocess.run([sys.executable, *program, str(path)], capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr[-3000:]
    assert trained(path)["processes"] == 1


# A machine that looks like one without a GPU --------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(processes, "on_cpu", lambda: True)


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        (False, None, "no GPU is found here"),
        (True, None, "the installed torch is a build for CPUs"),
        (True, "13.0", "its driver is too old for CUDA 13.0"),
    ],
)
def test_a_run_file_that_is_not_for_a_cpu_is_refused_there(run_file, no_gpu, monkeypatch, driver, cuda, words):
    monkeypatch.setattr(processes, "_has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    run = runfile.load(run_file("peft", recipe="phi4-mini-african-history"))
    with pytest.raises(click.ClickException, match=f"{run.name}: .*{words}.* name lora_recipes.plugin.CpuPlugin under"):
        trainer.train(run)
    assert not run.output_dir.exists()


def require_accelerator(path: Path) -> None:
    run = runfile.load(path)
    processes.require_accelerator(run.name, run.config.get("plugins"))


def test_one_that_asks_for_the_cpu_is_taken_there_and_any_on_a_gpu(run_file, no_gpu, monkeypatch):
    phi = {"recipe": "phi4-mini-african-history"}
    require_accelerator(run_file("peft", *CPU, **phi))
    require_accelerator(run_file("lora"))  # the CPU recipe names the plugin
    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    require_accelerator(run_file("lora", **phi))


# Too little memory ----------------------------------------------------------------------------------------------------

EXHAUSTED = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8589934592 bytes"),
    MemoryError(),
]


@pytest.mark.parametrize("error", EXHAUSTED, ids=["GPU", "library on a GPU", "CPU", "Python"])
def test_training_without_enough_memory_ends_in_a_sentence_with_what_to_lower(small, monkeypatch, error):
    def exhausted(*_):
        raise error

    monkeypatch.setattr(trainer, "_trainer", exhausted)
    monkeypatch.setattr(processes, "join", lambda deepspeed: None)
    path = small("peft", "micro_batch_size=4", "global_batch=8")
    with pytest.raises(click.ClickException) as caught:
        trainer.train(runfile.load(path))
    said = caught.value.message
    assert said.startswith("out of memory (") and "\n" not in said
    assert f"{path}: set micro_batch_size: 2 with gradient_accumulation_steps: 4 (the same global batch)" in said
    assert all(words in said for words in ("gradient_checkpointing: true", "sequence_len below 512", "qlora"))


def test_only_what_can_still_be_lowered_is_named(run_file):
    more = ("micro_batch_size=1", "global_batch=6", "gradient_checkpointing=true")
    said = memory.for_training(runfile.load(run_file("peft+qlora", *more)))
    assert "sequence_len" in said
    assert not any(words in said for words in ("micro_batch_size", "gradient_checkpointing", "qlora variant"))
    odd = memory.for_training(runfile.load(run_file("peft", "micro_batch_size=3", "global_batch=6")))
    assert "micro_batch_size: 1 with gradient_accumulation_steps: 6" in odd


def test_a_run_file_that_leaves_the_micro_batch_to_axolotl_has_none_to_lower():
    run = runfile.RunFile(yamlfile.Document("run.yaml", {"sequence_len": 512}), "", Path())
    assert "micro_batch_size" not in memory.for_training(run)


def test_another_error_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"), processes.enough_memory("lower it"):
        raise RuntimeError("shapes do not fit")


# Waiting for the GPU --------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes each operation whose result's size or value the processor has to wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::nonzero", "aten::_local_scalar_dense"):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("with_head", [True, False])
def test_the_loss_waits_for_nothing(with_head):
    """The columns with labels are found in the collator, on the CPU."""
    from test_padding_free import examples

    hidden = torch.randn(4, 64, 8)
    head = torch.nn.Linear(8, 97).requires_grad_(False)

    def model(logits_to_keep, **inputs):
        assert set(inputs) == {"input_ids", "attention_mask", "use_cache"}
        kept = hidden[:, logits_to_keep]
        return SimpleNamespace(logits=kept if with_head else head(kept))

    batch = batches.Collator(padding_tokenizer())(examples())
    plain = SimpleNamespace(head=head if with_head else None)
    with Waits() as waits:
        loss = trainer.PlainTrainer.compute_loss(plain, model, batch)
    assert waits.found == []
    labels = batch["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(
        head(hidden[:, :-1]).flatten(0, 1), labels.flatten(), ignore_index=prompts.IGNORED
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_no_logged_loss_is_waited_for(run_file):
    run = runfile.load(run_file("peft", "bf16=false"))
    assert settings.training_arguments(run, 8, False).logging_nan_inf_filter is False
