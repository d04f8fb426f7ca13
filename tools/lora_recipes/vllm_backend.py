"""vLLM in place of transformers: batches of its own making, and adapters as LoRA requests on one loaded base.

Written for vLLM 0.10 and later from its documentation; it is not among the pinned packages.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_recipes import adapters, processes
from lora_recipes.generating import Reply, Respond
from lora_recipes.questions import Question

import click

if TYPE_CHECKING:
    from lora_recipes.evaluation import System

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM takes for max_lora_rank."""


def require(adapters: list[Path], four_bit: bool) -> None:
    """Raises click.ClickException for what vLLM cannot do here; cheap, before anything is loaded."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        raise click.ClickException(
            "--backend vllm: vLLM is not installed here; install it beside torch, or leave --backend out."
        )
    if processes.on_cpu():
        raise click.ClickException("--backend vllm: no GPU is found here; leave --backend out.")
    if four_bit:
        raise click.ClickException(
            "--backend vllm: a run with load_in_4bit was trained on another base than vLLM would load; "
            "leave --backend out."
        )
    for folder in adapters:
        if _config(folder).get("use_dora"):
            raise click.ClickException(f"--backend vllm: {folder} is a DoRA, which vLLM cannot apply; leave it out.")


def _config(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / adapters.FILES[1]).read_text(encoding="utf-8")))


class Engine:
    """One base model in vLLM, and the adapters of the systems that share it."""

    batch_size = 512
    """Questions of one call, after which their answers are kept; vLLM makes its own batches of them."""

    def __init__(self, systems: "list[System]") -> None:
        from vllm import LLM

        adapters = [system.adapter for system in systems if system.adapter]
        ranks = [int(_config(folder)["r"]) for folder in adapters]
        lora: dict[str, Any] = {}
        if adapters:
            rank = next((size for size in _RANKS if size >= max(ranks)), max(ranks))
            lora = {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        model, dtype, _, _ = systems[0].loads
        self.llm = LLM(model=model, dtype=dtype, trust_remote_code=False, enable_prefix_caching=True, **lora)

    @contextlib.contextmanager
    def answering(self, number: int, system: "System") -> Iterator[Respond]:
        """How a system, the number-th of those given, replies to a batch."""
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(f"adapter{number}", number + 1, str(system.adapter)) if system.adapter else None
        yield lambda asked: self._replies(asked, lora, system.settings)

    def _replies(self, asked: list[Question], lora: Any, settings: dict[str, Any]) -> list[Reply]:
        from vllm import SamplingParams

        ends = settings["end_tokens"]
        greedy = SamplingParams(
            temperature=0.0, max_tokens=settings["max_new_tokens"], stop_token_ids=ends, ignore_eos=True
        )
        reading = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        prompts = [{"prompt_token_ids": one.prompt_ids} for one in asked]
        whole = [{"prompt_token_ids": one.prompt_ids + one.reference_ids} for one in asked]
        answers = self.llm.generate(prompts, greedy, lora_request=lora, use_tqdm=False)
        read = self.llm.generate(whole, reading, lora_request=lora, use_tqdm=False)
        return [
            Reply(_ids(answer.outputs[0]), _nats(one, known.prompt_logprobs))
            for one, answer, known in zip(asked, answers, read, strict=True)
        ]


def _ids(output: Any) -> list[int]:
    """With the end token, which a stop reason names where the ids leave it out."""
    ids, stop = list(output.token_ids), output.stop_reason
    return ids if output.finish_reason != "stop" or stop is None or ids[-1:] == [stop] else [*ids, int(stop)]


def _nats(one: Question, logprobs: list[Any]) -> float:
    told = logprobs[len(one.prompt_ids) :]
    return -sum(found[token].logprob for token, found in zip(one.reference_ids, told, strict=True))
