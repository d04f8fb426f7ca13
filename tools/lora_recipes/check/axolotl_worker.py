"""Axolotl in a process of its own, for tools/check.py: it takes ten seconds to import and sets environment variables.

It imports Axolotl first, while the caller reads rows. Then it reads one job a line from stdin as JSON and writes one
answer a line to what was stdout; all that Axolotl prints goes to stderr. `python -m lora_recipes.check.axolotl_worker`
"""

import glob
import importlib
import json
import os
import sys
from typing import Any

from lora_recipes.check import axolotl_load, axolotl_rows, axolotl_types

# The validation is for the GPU machine that the file is meant for, not for this one.
CAPABILITIES = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """All that Axolotl says of a run file, whose relative paths count from the folder `at`.

    `types`: the unknown ones of job["types"], each with the most similar that Axolotl has. `refused`: what
    its own validation refuses. `load`: what happens to the base model then, as axolotl_load.ask has it. `problems`:
    why Axolotl cannot tokenize the rows of a file of job["parts"]; those of the others lie beside it as FILE.tokens.
    `texts`: where it reads other texts than those of a file of job["written"], as axolotl_rows.compared has it.
    """
    os.chdir(job["at"])
    config = job["config"]
    types = {kind: axolotl_types.nearest(kind, config.get("rl")) for kind in job["types"]}
    problems = {part["rows"]: tokenize(config, job["tokenizer"], **part) for part in job["parts"]}
    return {
        "types": {kind: near for kind, near in types.items() if near is not None},
        "problems": {rows: problem for rows, problem in problems.items() if problem},
        "texts": {one["rows"]: axolotl_rows.compared(**one) for one in job["written"]},
        **validate(config, job["model"]),
    }


def validate(config: dict[str, Any], model: str | None) -> dict[str, Any]:
    """`refused`: key, message, value and, where only some are right, the right `values`; `load` where nothing is."""
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault
    from pydantic import ValidationError

    try:
        _register_plugins(config)
        cfg = validate_config(
            DictDefault(config), capabilities=CAPABILITIES, env_capabilities={"torch_version": "2.13.0"}
        )
    except ValidationError as error:
        return {"refused": [_refusal(one) for one in error.errors()]}
    except Exception as error:  # of every type: plugins and their validators are anybody's code
        return {"refused": [{"key": "", "message": axolotl_load.words(error), "value": "", "values": ""}]}
    return {"refused": [], "load": axolotl_load.ask(cfg, model) if model else {}}


def _refusal(error: Any) -> dict[str, str]:
    values = str(error.get("ctx", {}).get("expected", ""))
    key = ".".join(str(part) for part in error["loc"])
    return {"key": key, "message": error["msg"], "value": str(error["input"])[:80], "values": values}


def _register_plugins(config: dict[str, Any]) -> None:
    """Their keys become part of the schema; what they do to a process is not started."""
    from axolotl.integrations.base import PluginManager

    manager = PluginManager.get_instance()
    manager.plugins.clear()
    for name in config.get("plugins") or []:
        manager.register(str(name))


def tokenize(config: dict[str, Any], tokenizer: str, entry: dict[str, Any], rows: str, split: str | None) -> str:
    """Rows through Axolotl's own prompt strategy, as ids and labels in FILE.tokens; '' or why not.

    Those that Axolotl reads, of a data set on this machine with the `split` that it takes; else those of a JSONL file.
    """
    from axolotl.utils.data.wrappers import get_dataset_wrapper
    from axolotl.utils.dict import DictDefault
    from datasets import load_dataset
    from transformers import AutoTokenizer

    base, _, style = str(entry["type"]).partition(":")
    defaults = {"sequence_len": 512, "train_on_inputs": False}
    cfg = DictDefault({**defaults, **config, "dataset_num_proc": 1, "dataset_keep_in_memory": True})
    try:
        if split:
            data = axolotl_rows.loaded(entry, split)
        else:
            data = load_dataset("json", data_files=glob.escape(rows), split="train", cache_dir=f"{rows}.cache")
        made, _prompter = get_dataset_wrapper(
            dataset_config=DictDefault(entry),
            tokenizer=AutoTokenizer.from_pretrained(tokenizer),
            cfg=cfg,
            dataset_base_type=base,
            dataset=data,
            dataset_prompt_style=style or None,
        )
        with open(f"{rows}.tokens", "w", encoding="utf-8") as file:
            for row in made:
                file.write(json.dumps({"input_ids": row["input_ids"], "labels": row["labels"]}) + "\n")
    except Exception as error:  # of every type: the rows may not be what the type expects
        return axolotl_load.words(error)
    return ""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    importlib.import_module("axolotl.cli.config")  # what the jobs need: it takes ten seconds

    for line in sys.stdin:
        try:
            said = answer(json.loads(line))
        except Exception as error:  # the caller says it, and may send another job
            said = {"failed": axolotl_load.words(error)}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
