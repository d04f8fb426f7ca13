"""Questions as they are asked, and the hash under which an answer is kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.data import questions
from lora_recipes.data.questions import Question

import pytest


def test_the_hash_of_an_answer_changes_with_everything_that_determines_it() -> None:
    settings = {"adapter": "one", "max_new_tokens": 8}
    question = Question(0, "q", "r", [1, 2], [3])
    changed = [
        questions.hashes({**settings, "adapter": "two"}, [question]),
        questions.hashes({**settings, "max_new_tokens": 9}, [question]),
        questions.hashes(settings, [Question(0, "q", "r", [1, 2, 2], [3])]),
        questions.hashes(settings, [Question(0, "q", "other", [1, 2], [3])]),
    ]
    assert len({found[0] for found in [*changed, questions.hashes(settings, [question])]}) == 5
    assert (
        questions.hashes(settings, [question, Question(1, "q", "r", [1, 2], [3])])[0]
        == (questions.hashes(settings, [question])[0])
    )


def test_an_adapter_is_known_by_its_weights_and_scale_wherever_it_lies(tmp_path: Path) -> None:
    def adapter(name: str, weights: bytes = b"w", **config: Any) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
        whole = {"r": 8, "lora_alpha": 16, "target_modules": ["q", "v"], "base_model_name_or_path": name, **config}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(whole))
        return questions.adapter_identity(tmp_path / name)

    first = adapter("first")
    assert adapter("moved", target_modules=["v", "q"]) == first
    assert adapter("scaled", lora_alpha=32) != first
    assert adapter("trained", weights=b"W") != first


@pytest.mark.slow
def test_a_begin_token_is_neither_doubled_nor_lost(run_file: Callable[..., Path], embedded_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_model)
    tokenizer.bos_token = "<repo_name>"
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<repo_name> $A", special_tokens=[("<repo_name>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    found, mismatch = questions.load(runfile.load(run_file()), tokenizer, "test")
    assert mismatch == ""
    assert all(question.prompt_ids.count(tokenizer.bos_token_id) == 1 for question in found)
    assert all(tokenizer.bos_token_id not in question.reference_ids for question in found)
