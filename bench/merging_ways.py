"""One way of merging, run by bench/merging.py: merges in a process of its own, compares, prints the measurements.

The time is that of the whole command, start-up included, and the memory the largest resident size of
any process in it; Axolotl and PEFT leave what they wrote to the page cache, tools/merge.py waits for
the disk. What is left there is flushed after the clock has stopped, so that the next way starts even.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import merging

OUTPUT = merging.ADAPTER / "merged"
"""Where Axolotl and tools/merge.py write of themselves; PEFT is told to."""


def peft() -> None:
    """https://huggingface.co/docs/peft/developer_guides/lora, "Merge LoRA weights into the base model"."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(merging.BASE, dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, merging.ADAPTER).merge_and_unload()
    model.save_pretrained(OUTPUT)
    AutoTokenizer.from_pretrained(merging.BASE).save_pretrained(OUTPUT)


def whole_weights() -> None:
    """Our own simpler way, which folding by rows has to beat: each weight read, folded and written as a whole."""
    from lora_recipes.config import runfile
    from lora_recipes.merging import merge_plan, verification
    from lora_recipes.models import shards

    plan = merge_plan.plan(runfile.load(merging.WORK / "run.yaml"), merging.ADAPTER, "full")
    OUTPUT.mkdir()
    shutil.copy(plan.base / shards.INDEX, OUTPUT)  # the merged files are named as the base's
    for name, entries in plan.files.items():
        shards.write(OUTPUT / name, entries, (_folded(plan, entry) for entry in entries))
        shards.flush(OUTPUT / name)
    verification.require_tensors(plan, OUTPUT)


def _folded(plan: Any, entry: Any) -> Any:
    from lora_recipes.models import shards

    weight, change = shards.read(entry), plan.changes.get(entry.name)
    if change:
        weight = weight.float().addmm_(change.left, change.right, alpha=change.scale).to(weight.dtype)
    return shards.bytes_of(weight)


def largest_difference() -> int:
    """The largest distance of a merged weight from float32 base + s·B·A rounded once, in steps of bfloat16."""
    import torch
    from safetensors import safe_open

    places = _places(OUTPUT)
    missing = set(_places(merging.BASE)) ^ set(places) - {"lm_head.weight"}
    if missing:
        sys.exit(f"{sorted(missing)[0]} is in one of base and merged model only")
    largest = 0
    with safe_open(merging.ADAPTER / "adapter_model.safetensors", "pt") as adapter:
        changed = set(adapter.keys())
        for name, file in _places(merging.BASE).items():
            with safe_open(file, "pt") as base, safe_open(places[name], "pt") as merged:
                expected, found = base.get_tensor(name), merged.get_tensor(name)
            key = f"base_model.model.{name.removesuffix('.weight')}.lora_%s.weight"
            if key % "A" in changed:
                a, b = (adapter.get_tensor(key % part) for part in "AB")
                expected = (expected.float() + merging.ALPHA / merging.RANK * (b @ a)).bfloat16()
            if found.dtype != torch.bfloat16:
                sys.exit(f"{name} was merged to {found.dtype}")
            largest = max(largest, int((_steps(expected) - _steps(found)).abs().max()))
    return largest


def _places(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as held:
            found |= dict.fromkeys(held.keys(), file)
    return found


def _steps(tensor: Any) -> Any:
    """bfloat16 values as whole numbers of which neighbours differ by one."""
    import torch

    bits = tensor.view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def main() -> None:
    way = sys.argv[1]
    run = str(merging.WORK / "run.yaml")
    commands = {
        "peft": [sys.executable, __file__, "peft in this process"],
        "whole-weights": [sys.executable, __file__, "whole-weights in this process"],
        "axolotl": [str(Path(sys.executable).parent / "axolotl"), "merge-lora", run],
        "ours-tensors-only": [sys.executable, str(merging.ROOT / "tools" / "merge.py"), run, "--no-verify"],
        "ours": [sys.executable, str(merging.ROOT / "tools" / "merge.py"), run],
    }
    shutil.rmtree(OUTPUT, ignore_errors=True)
    os.sync()
    begun = time.monotonic()
    done = subprocess.run(commands[way], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - begun
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # before anything heavy is loaded here
    os.sync()
    measured = {
        "seconds": round(seconds, 1),
        "peak_memory_mb": round(peak * 1024 / 1e6),
        "largest_difference_bf16_steps": largest_difference(),
    }
    if (OUTPUT / "merge.json").exists():
        parts = json.loads((OUTPUT / "merge.json").read_text(encoding="utf-8"))["seconds"]
        measured |= {f"{name}_seconds": seconds for name, seconds in parts.items()}
    shutil.rmtree(OUTPUT)
    print(json.dumps(measured))


if __name__ == "__main__":
    here = {"peft in this process": peft, "whole-weights in this process": whole_weights}
    here.get(sys.argv[1], main)()
