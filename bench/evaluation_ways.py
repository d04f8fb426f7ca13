"""One way of evaluating, run by bench/evaluation.py: answers, scores, prints the measurements as JSON."""

import gc
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.config import runfile
from lora_recipes.models import bundled, loading
from lora_recipes.support import libraries, processes

import evaluation


def reference(paths: list[Path], questions: int) -> list[str]:
    """From the description of the published evaluations: each system loaded from nothing, asked through a pipeline
    a question at a time, its answers scored by a call of bert_score that loads the scorer."""
    libraries.quiet()
    import bert_score
    from transformers import pipeline

    processes.share_cores()
    texts: list[str] = []
    for path in paths:
        run = runfile.load(path)
        tokenizer = loading.load_tokenizer(run)
        model = loading.load_adapter(loading.load_base(run), run.output_dir).eval()
        ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
        rows = [json.loads(line) for line in _test_rows(questions)]
        system = {"role": "system", "content": run.config["datasets"][0]["type"]["system_prompt"]}
        answers = []
        for row in rows:
            messages = [system, {"role": "user", "content": row["question"]}]
            told: Any = ask(messages, max_new_tokens=evaluation.NEW_TOKENS, do_sample=False, return_full_text=False)
            answers.append(told[0]["generated_text"].strip())
        # bert_score fails on an empty answer.
        filled = [answer or "." for answer in answers]
        scorer = str(bundled.scoring_model())
        bert_score.score(filled, [row["answer"] for row in rows], model_type=scorer, num_layers=6)
        texts += answers
        del model, ask
        gc.collect()
    return texts


def _test_rows(questions: int) -> list[str]:
    path = ROOT / "data" / "african_history" / "test.jsonl"
    return path.read_text(encoding="utf-8").splitlines()[:questions]


def sorted_batches(paths: list[Path], questions: int) -> list[str]:
    """What tools/eval.py would be without a decoder of its own: as many questions at once, references read apart."""
    libraries.quiet()
    from lora_recipes.data import questions as asking
    from lora_recipes.evaluation.metrics import bertscore
    from lora_recipes.inference import batch_size, decoding, reference_loss, shared_base
    from lora_recipes.results import systems

    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    runs = [runfile.load(path) for path in paths]
    chosen = [systems.of_run(run, run.output_dir) for run in runs]
    tokenizer = loading.load_tokenizer(runs[0])
    asked = asking.load(runs[0], tokenizer, "test")[0][:questions]
    ends = asking.end_tokens(runs[0], tokenizer)
    shared = shared_base.SharedBase(chosen)
    AttentionInterface.register("sdpa", sdpa_attention_forward)
    size = batch_size.by_memory(shared.model, asked, evaluation.NEW_TOKENS)
    order = sorted(asked, key=lambda question: -len(question.prompt_ids))
    texts: list[str] = []
    for system in chosen:
        told: dict[int, str] = {}
        with shared.active(system) as model:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                prompts = [question.prompt_ids for question in batch]
                made = decoding.generate(model, tokenizer.pad_token_id, prompts, ends, evaluation.NEW_TOKENS)
                for question, ids in zip(batch, made, strict=True):
                    told[question.row] = tokenizer.decode(ids, skip_special_tokens=True).strip()
                references = [question.reference_ids for question in batch]
                for part in range(0, len(batch), 16):
                    rows = slice(part, part + 16)
                    reference_loss.reference_nats(model, prompts[rows], references[rows], tokenizer.pad_token_id)
        answers = [told[question.row] for question in asked]
        bertscore.load(None).score(answers, [question.reference for question in asked])
        texts += answers
    return texts


def ours(paths: list[Path], questions: int) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools" / "eval.py"), *map(str, paths)]
    options = ["--limit", str(questions), "--max-new-tokens", str(evaluation.NEW_TOKENS)]
    done = subprocess.run(
        [*tool, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    texts: list[str] = []
    for path in paths:
        lines = (runfile.load(path).output_dir / "answers-test.jsonl").read_text(encoding="utf-8").splitlines()
        answers = sorted((json.loads(line) for line in lines), key=lambda answer: answer["row"])
        texts += [answer["answer"] for answer in answers]
    return texts


def main() -> None:
    way, questions, count, dtype = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    paths = [evaluation.run_file(number + 1, dtype) for number in range(count)]
    begun = time.monotonic()
    texts = {"reference": reference, "sorted": sorted_batches, "ours": ours}[way](paths, questions)
    seconds = time.monotonic() - begun
    (evaluation.WORK / f"{way}.json").write_text(json.dumps(texts), encoding="utf-8")
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    measured: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "questions_per_second": round(count * questions / seconds, 3),
        "peak_memory_mb": max(usage) // 1024,
        "mean_answer_characters": round(sum(map(len, texts)) / len(texts), 1),
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
