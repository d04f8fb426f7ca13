"""Axolotl in a process of its own, for tools/check.py: it takes ten seconds to import and sets environment variables.

Reads one job a line from stdin as JSON, with the folder `at` which it is done, and writes one answer a line to what was
stdout; all that Axolotl prints goes to stderr. `python -m lora_recipes.check.axolotl_worker`
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

# The validation is for the GPU machine that the file is meant for, not for this one.
CAPABILITIES = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def validate(config: dict[str, Any], model: str | None) -> dict[str, Any]:
    """What Axolotl's own validation refuses, as key and message, under `refused`.

    Where it refuses nothing and there is a base model, `load` is what happens to it then, as axolotl_load.ask has it.
    """
    from lora_recipes.check import axolotl_load

    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    try:
        _register_plugins(config)
        cfg = validate_config(
            DictDefault(config), capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.13.0"}
        )
    except ValidationError as error:
        found = [{"key": ".".join(str(part) for part in one["loc"]), "message": one["msg"]} for one in error.errors()]
        return {"refused": found}
    except Exception as error:  # of every type: plugins and their validators are anybody's code
        return {"refused": [{"key": "", "message": axolotl_load.words(error)}]}
    return {"refused": [], "load": axolotl_load.ask(cfg, model) if model else {}}


def _register_plugins(config: dict[str, Any]) -> None:
    """Their keys become part of the schema; what they do to a process is not started."""
    from axolotl.integrations.base import PluginManager

    manager = PluginManager.get_instance()
    manager.plugins.clear()
    for name in config.get("plugins") or []:
        manager.register(str(name))


def tokenize(config: dict[str, Any], entry: dict[str, Any], tokenizer: str, rows: str, output: str) -> str:
    """Rows of a JSONL file through Axolotl's own prompt strategy, as input_ids and labels in another.

    The answer is '' or why it cannot be done.
    """
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import Dataset
    from transformers import AutoTokenizer

    base, _, style = str(entry["type"]).partition(":")
    cfg = DictDefault({**config, "dataset_num_proc": 1, "dataset_keep_in_memory": True})
    with open(rows, encoding="utf-8") as lines:
        data = Dataset.from_list([json.loads(line) for line in lines])
    try:
        made, _prompter = get_dataset_wrapper(
            dataset_config=DictDefault(entry),
            tokenizer=AutoTokenizer.from_pretrained(tokenizer),
            cfg=cfg,
            dataset_base_type=base,
            dataset=data,
            dataset_prompt_style=style or None,
        )
        with open(output, "w", encoding="utf-8") as file:
            for row in made:
                file.write(json.dumps({"input_ids": row["input_ids"], "labels": row["labels"]}) + "\n")
    except Exception as error:  # of every type: the rows may not be what the type expects
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: dict[str, Callable[..., Any]] = {"validate": validate, "tokenize": tokenize}
    for line in sys.stdin:
        job = json.loads(line)
        try:
            os.chdir(job.pop("at"))  # where the file's relative paths count from
            answer = {"answer": jobs[job.pop("do")](**job)}
        except Exception as error:  # the next job is asked all the same
            answer = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
