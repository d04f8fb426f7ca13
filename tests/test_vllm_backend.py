"""The vLLM backend against a stand-in for vLLM, which is not installed here: what it is asked, what is made of it."""

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from lora_recipes import processes, questions, vllm_backend
from lora_recipes.generating import Reply
from lora_recipes.questions import Question

import click
import eval as eval_tool
import pytest
from click.testing import CliRunner


class FakeLLM:
    """Answers each prompt with its last token and the first end token; each told token costs half a nat."""

    def __init__(self, **options: Any) -> None:
        self.options, self.requests = options, []

    def generate(self, prompts: list[Any], params: Any, lora_request: Any, use_tqdm: bool) -> list[Any]:
        self.requests.append((params, lora_request))
        found = []
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            told = [None, *({token: SimpleNamespace(logprob=-0.5)} for token in ids[1:])]
            stop = params.stop_token_ids[0] if "stop_token_ids" in vars(params) else None
            output = SimpleNamespace(token_ids=[ids[-1]], finish_reason="stop" if stop else "length", stop_reason=stop)
            found.append(SimpleNamespace(outputs=[output], prompt_logprobs=told))
        return found


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    made["vllm"].__spec__ = ModuleSpec("vllm", None)
    made["vllm"].LLM = FakeLLM  # type: ignore[attr-defined]
    made["vllm"].SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    made["vllm.lora.request"].LoRARequest = lambda *args: args  # type: ignore[attr-defined]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)


def system(adapter: Path | None) -> Any:
    settings = {"end_tokens": [2, 7], "max_new_tokens": 16}
    return SimpleNamespace(adapter=adapter, settings=settings, loads=("model", "bfloat16", False, "sdpa"))


def folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "adapter_config.json").write_text(json.dumps({"r": 12, **config}))
    return path


def test_adapters_are_lora_requests_on_one_base(fake: None, tmp_path: Path) -> None:
    systems = [system(None), system(folder(tmp_path / "one")), system(folder(tmp_path / "two", r=20))]
    engine = vllm_backend.Engine(systems)
    assert engine.llm.options["max_lora_rank"] == 32 and engine.llm.options["trust_remote_code"] is False
    asked = [Question(0, "q", "r", [4, 5, 6], [8, 9, 2])]
    for number, one in enumerate(systems):
        with engine.answering(number, one) as respond:
            assert respond(asked) == [Reply([6, 2], 1.5)]
    requests = engine.llm.requests
    assert [lora for _, lora in requests[::2]] == [
        None,
        ("adapter1", 2, str(systems[1].adapter)),
        ("adapter2", 3, str(systems[2].adapter)),
    ]
    assert (requests[0][0].temperature, requests[0][0].max_tokens, requests[1][0].prompt_logprobs) == (0.0, 16, 0)


def test_an_end_token_is_kept_or_added_and_an_answer_cut_off_has_none() -> None:
    def ids(tokens: list[int], reason: str, stop: int | None) -> list[int]:
        return vllm_backend._ids(SimpleNamespace(token_ids=tokens, finish_reason=reason, stop_reason=stop))

    assert ids([5, 2], "stop", 2) == ids([5], "stop", 2) == [5, 2]
    assert ids([5, 6], "length", None) == [5, 6]


def test_what_it_cannot_do_is_one_sentence(fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "on_cpu", lambda: True)
    with pytest.raises(click.ClickException, match="no GPU is found here"):
        vllm_backend.require([], False)
    monkeypatch.setattr(processes, "on_cpu", lambda: False)
    vllm_backend.require([folder(tmp_path / "plain")], False)
    with pytest.raises(click.ClickException, match="load_in_4bit"):
        vllm_backend.require([], True)
    with pytest.raises(click.ClickException, match="is a DoRA"):
        vllm_backend.require([folder(tmp_path / "dora", use_dora=True)], False)


def test_without_vllm_the_command_says_so_before_it_loads_anything(
    run_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora_recipes import evaluation

    monkeypatch.setattr(evaluation, "choose", lambda runs, base, adapter: [(run, None) for run in runs])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(eval_tool.main, [str(run_file()), "--backend", "vllm"])
    assert (done.exit_code, "vLLM is not installed here" in done.stderr) == (1, True)


def test_answers_of_two_backends_have_different_hashes() -> None:
    question = Question(0, "q", "r", [1, 2], [3])
    hashes = [questions.hashes({"backend": name}, [question]) for name in ("transformers", "vllm")]
    assert hashes[0] != hashes[1]
