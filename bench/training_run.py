"""One contender of bench/training.py, in a process of its own: trains, scores the adapter, prints the measurements.

The time is that of the training loop alone (transformers' train_runtime); start-up is another benchmark.
Every contender is one process on all cores.
"""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

from lora_recipes.config import runfile
from lora_recipes.data import prompts, rows
from lora_recipes.models import loading
from lora_recipes.support import libraries, processes

import contenders
import measuring
import rates
import training


def score(run: runfile.RunFile, folder: Path) -> float:
    """Mean cross-entropy in nats over the answer tokens of the validation rows, in float32."""
    import torch

    tokenizer = loading.load_tokenizer(run)
    model = loading.load_adapter(loading.load_base(run, torch.float32), folder).eval()
    total = count = 0.0
    for part, fmt in rows.load_parts(run, "validation"):
        for example in prompts.examples(tokenizer, fmt, part):
            ids, labels = (torch.tensor([example[name]]) for name in ("input_ids", "labels"))
            kept = (labels[:, 1:] != prompts.IGNORED).squeeze(0).nonzero().squeeze(1)
            with torch.no_grad():
                logits = model(input_ids=ids, logits_to_keep=kept).logits[0]
            total += torch.nn.functional.cross_entropy(logits, labels[0, 1:][kept], reduction="sum").item()
            count += len(kept)
    return total / count


def main() -> None:
    name, tokens, sequence_len = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    libraries.quiet()
    processes.share_cores()
    if name == "matmul":
        print(json.dumps({"gflops": round(rates.matrix_rate(dtype=measuring.dtype()) / 1e9, 1)}))
        return
    run = runfile.load(training.WORK / f"{name}.yaml")
    folder = training.WORK / "out" / name
    shutil.rmtree(folder, ignore_errors=True)
    begun = time.monotonic()
    trained = contenders.named(name).train(run, training.WORK, sequence_len)
    whole = time.monotonic() - begun
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak_mb = max(usage) // 1024  # before the adapter is scored
    steady = rates.steady(trained.times, trained.seen, tokens)
    measured = {
        "tokens_per_second": round(tokens / trained.seconds, 1),
        "steady_tokens_per_second": round(steady, 1) if steady else None,
        "seconds": round(trained.seconds, 1),
        "with_start_up": round(whole, 1),
        "peak_memory_mb": peak_mb,
        "steps": len(trained.times),
        "tokens_counted": trained.seen[-1] if trained.seen else None,
        "validation_loss": round(score(run, folder), 4),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
