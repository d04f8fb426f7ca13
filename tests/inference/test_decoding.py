"""Answers in batches are those of one by one: with a shared beginning, rows that leave, adapters switched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_recipes.config import runfile
from lora_recipes.data import questions
from lora_recipes.data.questions import Question
from lora_recipes.evaluation import answering
from lora_recipes.evaluation.answering import AnswersFile
from lora_recipes.inference import batch_size, decoding, reference_loss
from lora_recipes.inference.shared_base import SharedBase
from lora_recipes.models import loading
from lora_recipes.results import systems

import pytest

ENDS = [2, *range(32, 40)]


def test_the_common_beginning_leaves_a_token_of_every_prompt() -> None:
    assert decoding.common_beginning([[1, 2, 3, 9], [1, 2, 4], [1, 2, 3, 5]]) == [1, 2]
    assert decoding.common_beginning([[1, 2], [1, 2, 3]]) == [1]
    assert decoding.common_beginning([[1, 2, 3]]) == [1, 2]
    assert decoding.common_beginning([[1, 2], [3, 2]]) == []


def asked(prompts: list[list[int]], references: list[list[int]] | None = None) -> list[Question]:
    given = references or [[7, 8, 2][: 1 + n % 3] for n in range(len(prompts))]
    return [Question(n, "q", "r", ids, given[n]) for n, ids in enumerate(prompts)]


def decode(
    model: Any, batch: list[Question], limit: int, beginning: list[int] | None = None, ends: list[int] = ENDS
) -> list[decoding.Reply]:
    begun = decoding.common_beginning([one.prompt_ids for one in batch]) if beginning is None else beginning
    return decoding.Decoder(model, begun, 0, ends, limit)(batch)


def one_by_one(model: Any, batch: list[Question], limit: int) -> list[list[int]]:
    """Without a cache, padding or neighbours."""
    import torch

    found = []
    for one in batch:
        ids = list(one.prompt_ids)
        while len(ids) - len(one.prompt_ids) < limit and not set(ids[len(one.prompt_ids) :]) & set(ENDS):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(ids[len(one.prompt_ids) :])
    return found


def tiny(kind: str, **more: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, initializer_range=0.5, **sizes, **heads, **more)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


PROMPTS = [[5, 6, 7, 8] + [(3 * n + k) % 30 + 9 for k in range(n % 5 + 1)] for n in range(12)]

MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "tie_word_embeddings": False}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("Llama", {}),
        ("Mistral", {"sliding_window": None}),
        ("Mistral", {"sliding_window": 12}),
        ("Mistral", {"sliding_window": 400}),
        ("Gemma3Text", {"sliding_window": 12, **MIXED}),
        ("Gemma3Text", {"sliding_window": 400, **MIXED}),
    ],
)
def test_a_batch_answers_as_one_by_one_whatever_the_cache_forgets(kind: str, more: dict[str, Any]) -> None:
    model, batch = tiny(kind, **more), asked(PROMPTS)
    expected = one_by_one(model, batch, 24)
    assert len({len(ids) for ids in expected}) > 1  # some end early, so rows leave
    found = decode(model, batch, 24)
    assert [reply.token_ids for reply in found] == expected
    alone = [reference_loss.reference_nats(model, [one.prompt_ids], [one.reference_ids], 0)[0] for one in batch]
    assert [reply.reference_nats for reply in found] == pytest.approx(alone, rel=1e-4)


def test_a_batch_in_parts_and_without_a_beginning_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("Llama"), asked(PROMPTS)
    whole = decode(model, batch, 24)
    assert [reply.token_ids for reply in decode(model, batch, 24, [])] == [reply.token_ids for reply in whole]
    monkeypatch.setattr(decoding, "TOKENS", 40)
    assert len(decoding._parts(batch)) > 2
    found = decode(model, batch, 24)
    assert [reply.token_ids for reply in found] == [reply.token_ids for reply in whole]
    assert [reply.reference_nats for reply in found] == pytest.approx([reply.reference_nats for reply in whole])


def test_the_beginning_is_computed_once_and_finished_rows_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shapes = tiny("Llama"), []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **inputs: shapes.append(tuple(inputs["input_ids"].shape)) or forward(**inputs)
    )
    decoder = decoding.Decoder(model, [5, 6, 7, 8], 0, ENDS, 24)
    decoder(asked(PROMPTS))
    decoder(asked(PROMPTS))
    assert shapes.count((1, 4)) == 1
    steps = [rows for rows, columns in shapes if columns == 1]
    assert max(steps) == 12 and min(steps) < 12


@pytest.mark.slow
def test_in_float32_questions_with_adapters_switched_are_answered_as_one_by_one(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    run = runfile.load(run_file("lora", "bf16=false"))
    tokenizer = loading.load_tokenizer(run)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    for name in ("one", "two"):
        get_peft_model(loading.load_base(run), config).save_pretrained(tmp_path / name)
    one, two, base = (
        *(systems.of_run(run, tmp_path / name) for name in ("one", "two")),
        systems.of_base(run, None),
    )
    shared = SharedBase([one, base, two])
    batch = questions.load(run, tokenizer, "test")[0][:7]
    assert len({len(question.prompt_ids) for question in batch}) > 4
    answers = []
    for system in (one, base, two, one):
        with shared.active(system) as model:
            answers.append([reply.token_ids for reply in decode(model, batch, 8, ends=[2])])
            if len(answers) < 4:  # the fourth time it is compared with the first
                alone = [decoding.generate(model, 0, [question.prompt_ids], [2], 8)[0] for question in batch]
                assert answers[-1] == alone
    assert answers[0] == answers[3] and len({str(found) for found in answers}) == 3


# How many at once


def test_the_batch_grows_with_the_free_memory_in_powers_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny("Llama"), asked(PROMPTS)
    each, once = batch_size._bytes(model, decoding._width(batch, 24))
    sizes = []
    for questions_fitting in (0, 5.5, 12.5, 10**6):
        free = (once + questions_fitting * each) / batch_size._SHARE
        monkeypatch.setattr(batch_size, "free", lambda device, free=free: free)
        sizes.append(batch_size.by_memory(model, batch, 24))
    assert sizes == [1, 4, 8, 128]


def test_the_cache_of_a_question_is_counted_in_bytes() -> None:
    each, _ = batch_size._bytes(tiny("Llama"), 10)
    assert each == 2 * (2 * 3 * 2 * 8 * 10 * 4) + 40 * 8


def test_a_containers_limit_bounds_the_free_memory(tmp_path: Path) -> None:
    assert batch_size._left_in_group(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert batch_size._left_in_group(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert batch_size._left_in_group(tmp_path) == [600]


class Words:
    def decode(self, ids: list[int], **options: Any) -> str:
        return " ".join(map(str, ids))


def reply_up_to(most: int, calls: list[int]) -> decoding.Respond:
    import torch

    def respond(batch: list[Question]) -> list[decoding.Reply]:
        calls.append(len(batch))
        if len(batch) > most:
            raise torch.OutOfMemoryError
        return [decoding.Reply([one.row, 2], 1.0) for one in batch]

    return respond


def test_out_of_memory_halves_the_batches_and_a_restart_goes_on_with_the_smaller_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, batch, calls = tmp_path / "answers.jsonl", asked(PROMPTS), []
    hashes = {one.row: "h" for one in batch}
    file = AnswersFile(path, hashes)
    assert file.batch_size is None
    done = answering.answer(file, reply_up_to(4, calls), Words(), batch, ENDS, 8, "label")
    assert (done, calls) == ((12, 4), [8, 4, 4, 4])
    assert "out of memory; going on with batches of 4" in capsys.readouterr().err
    again = AnswersFile(path, hashes)
    assert file.batch_size == again.batch_size == 4
    assert sorted(again.answers) == list(range(12))


def test_one_question_that_is_too_much_is_said_so(tmp_path: Path) -> None:
    import torch

    batch = asked(PROMPTS)
    with pytest.raises(torch.OutOfMemoryError):
        answering.answer(AnswersFile(tmp_path / "a", {}), reply_up_to(0, []), Words(), batch, ENDS, 2, "label")
