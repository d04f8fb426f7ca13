"""One way of benchmarking, run by bench/benchmarking.py: scores the adapters, prints the measurements as JSON."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.support import libraries

import benchmarking
import evaluation

METRICS = ("acc", "acc_norm")


def lm_eval(run: runfile.RunFile, limit: int, dtype: str) -> dict[str, float]:
    """lm-eval's own command on one adapter, its batches those of tools/benchmark.py."""
    with tempfile.TemporaryDirectory() as folder:
        _run(
            str(Path(sys.executable).parent / "lm_eval"),
            *("run", "--model", "hf"),
            *("--model_args", f"pretrained={run.model()},peft={run.output_dir},dtype={dtype}"),
            *("--tasks", benchmarking.TASK, "--include_path", str(ROOT / "data" / benchmarking.TASK)),
            *("--batch_size", "16", "--device", "cpu", "--limit", str(limit), "--output_path", folder),
        )
        found = json.loads(next(Path(folder).rglob("results_*.json")).read_text(encoding="utf-8"))
    return {metric: found["results"][benchmarking.TASK][f"{metric},none"] for metric in METRICS}


def hflm(runs: list[runfile.RunFile], limit: int) -> list[dict[str, float]]:
    """What tools/benchmark.py would be without log-likelihoods of its own."""
    libraries.quiet()
    from lora_recipes.evaluation import tasks
    from lora_recipes.inference import shared_base
    from lora_recipes.models import loading
    from lora_recipes.results import systems

    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    task = tasks.prepare([benchmarking.TASK], None, limit)[0][0]
    chosen = [systems.of_run(run, run.output_dir) for run in runs]
    shared = shared_base.SharedBase(chosen)
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    lm = HFLM(pretrained=shared.base, tokenizer=loading.load_tokenizer(runs[0]), batch_size=16)
    scores = []
    for system in chosen:
        with shared.active(system):
            found: Any = evaluate(lm, {task.name: task.loaded}, limit=limit, bootstrap_iters=0)
        scores.append({metric: found["results"][task.name][f"{metric},none"] for metric in METRICS})
    return scores


def ours(runs: list[runfile.RunFile], limit: int) -> list[dict[str, float]]:
    for run in runs:  # else the scores of the last time are taken
        (run.output_dir / f"benchmark-{benchmarking.TASK}.json").unlink(missing_ok=True)
    tool = str(ROOT / "tools" / "benchmark.py")
    _run(sys.executable, tool, *(run.name for run in runs), "--tasks", benchmarking.TASK, "--limit", str(limit))
    scores = []
    for run in runs:
        section = json.loads((run.output_dir / "result.json").read_text(encoding="utf-8"))["benchmark"]
        scores.append({metric: section["metrics"][f"{benchmarking.TASK}_{metric}"]["mean"] for metric in METRICS})
    return scores


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


def main() -> None:
    way, limit, count, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    runs = [runfile.load(evaluation.run_file(number + 1, dtype)) for number in range(count)]
    (benchmarking.WORK / f"{way}.json").unlink(missing_ok=True)
    begun = time.monotonic()
    if way == "lm-eval":
        scores = [lm_eval(run, limit, dtype) for run in runs]
    else:
        scores = (ours if way == "ours" else hflm)(runs, limit)
    seconds = time.monotonic() - begun
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    named = {
        f"{run.variant} {metric}": score for run, one in zip(runs, scores, strict=True) for metric, score in one.items()
    }
    (benchmarking.WORK / f"{way}.json").write_text(json.dumps(named), encoding="utf-8")
    measured: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "questions_per_second": round(count * limit / seconds, 2),
        "peak_memory_mb": max(usage) // 1024,
        "mean_acc": round(sum(one["acc"] for one in scores) / count, 6),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
