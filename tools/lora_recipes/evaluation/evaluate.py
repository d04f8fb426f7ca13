"""The systems of an evaluation, base model and variants: prepared, and answered on one loaded base."""

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import questions
from lora_recipes.data.questions import Question
from lora_recipes.evaluation import answering
from lora_recipes.inference import batch_size, decoding, grouped_query
from lora_recipes.inference.decoding import Respond
from lora_recipes.models import adapters, loading
from lora_recipes.results import result_files
from lora_recipes.results.result_files import Stopwatch
from lora_recipes.support import files

import click


@dataclass
class System:
    """The base model (without adapter) or a trained variant, and what it is asked."""

    run: RunFile
    adapter: Path | None
    split: str
    tokenizer: Any
    asked: list[Question]
    hashes: dict[int, str]
    """Of all rows of the split, also of those beyond a limit."""
    settings: dict[str, Any]
    prompt_mismatch: str
    answered: int = 0
    """Questions answered by this process; the others were answered before."""
    batch_size: int | None = None
    """Of the last answers; None when there is no telling."""
    seconds: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.run.variant if self.adapter else "base"

    @property
    def folder(self) -> Path:
        return result_files.folder(self.run, base=self.adapter is None)

    @property
    def answers_path(self) -> Path:
        return self.folder / f"answers-{self.split}.jsonl"

    @property
    def loads(self) -> tuple[str, str, bool, str]:
        """Systems in which this is equal share one loaded base."""
        return _loads(self.run, self.adapter)


def _loads(run: RunFile, adapter: Path | None) -> tuple[str, str, bool, str]:
    four_bit = bool(run.config.get("load_in_4bit")) and adapter is not None
    dtype = str(loading.dtype_of(run)).removeprefix("torch.")
    return run.model(), dtype, four_bit, str(run.config.get("attn_implementation"))


def choose(runs: list[RunFile], base: bool, adapter: Path | None) -> list[tuple[RunFile, Path | None]]:
    """The run file and adapter of each system, base models first.

    The base model of a recipe is measured once, in full precision; from the first run file that
    loads it so, if there is one. Raises click.ClickException for a missing, damaged or foreign adapter.
    """
    for run in runs:
        adapters.require(adapter or run.output_dir, run)
    bases: dict[Path, RunFile] = {}
    for run in sorted(runs, key=lambda run: bool(run.config.get("load_in_4bit"))) if base else ():
        bases.setdefault(result_files.folder(run, base=True), run)
    for folder in [*bases, *(run.output_dir for run in runs)]:
        files.require_writable(folder)
    return [*((run, None) for run in bases.values()), *((run, adapter or run.output_dir) for run in runs)]


def prepare(run: RunFile, adapter: Path | None, split: str, limit: int | None, max_new_tokens: int) -> System:
    """Read and tokenize the questions; warn when they are not asked as they were trained."""
    tokenizer = loading.load_tokenizer(run)
    found, prompt_mismatch = questions.load(run, tokenizer, split)
    model, dtype, four_bit, attention = _loads(run, adapter)
    settings = {
        "base_model": questions.model_identity(model),
        "adapter": questions.adapter_identity(adapter) if adapter else None,
        "dtype": dtype,
        "four_bit": four_bit,
        "attn_implementation": attention,
        "backend": "transformers",  # one of two once: it stays, so that the answers of then are still taken
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "end_tokens": questions.end_tokens(run, tokenizer),
    }
    hashes = questions.hashes(settings, found)
    system = System(run, adapter, split, tokenizer, found[:limit], hashes, settings, prompt_mismatch)
    if prompt_mismatch:
        click.secho(
            f"WARNING: {run.name}: {system.name} is asked another prompt than the run file trains on, so the scores "
            f"say little about the training: {prompt_mismatch}. Mend system_format and no_input_format.",
            fg="red",
            err=True,
        )
    return system


def answer(systems: list[System], batch_size: int | None) -> None:
    """Answer what is missing, each base loaded once. The locks of the answers files have to be held.

    Without a batch size that of the answers so far, or else one by the free memory.
    Raises click.ClickException when the memory is too small for one question.
    """
    import torch

    waiting = [system for system in systems if answering.missing(system.answers_path, system.hashes, system.asked)]
    for system in systems:
        system.batch_size = batch_size or answering.recorded_batch_size(system.answers_path, system.hashes)
    for loads in dict.fromkeys(system.loads for system in waiting):
        try:
            _answer_on_one_base([system for system in waiting if system.loads == loads])
        except torch.OutOfMemoryError:
            raise click.ClickException(
                "out of memory with one question at a time; take a machine with more, the answers so far are kept."
            ) from None
        gc.collect()
        torch.cuda.empty_cache()  # what is free sizes the next base's batches; does nothing where CUDA is not in use


def _answer_on_one_base(systems: list[System]) -> None:
    base = _Base(systems)
    for number, system in enumerate(systems):
        watch = Stopwatch()
        with base.answering(number, system) as respond:
            system.answered, system.batch_size = answering.answer(
                system.answers_path,
                respond,
                system.tokenizer,
                system.asked,
                system.hashes,
                system.settings["end_tokens"],
                system.batch_size or base.batch_size,
                f"{system.run.recipe} {system.name}",
            )
        system.seconds = watch.seconds()


class _Base:
    """One base model in memory, and the adapters of the systems that share it."""

    def __init__(self, systems: list[System]) -> None:
        self.model, self.names = _load(systems)
        self.batch_size = min(
            batch_size.by_memory(self.model, system.asked, system.settings["max_new_tokens"]) for system in systems
        )

    @contextlib.contextmanager
    def answering(self, number: int, system: System) -> Iterator[Respond]:
        """How a system, the number-th of those given, replies to a batch."""
        beginning = decoding.common_beginning([question.prompt_ids for question in system.asked])
        generation = {key: system.settings[key] for key in ("end_tokens", "max_new_tokens")}
        with _active(self.model, self.names[number]):
            yield decoding.Decoder(self.model, beginning, system.tokenizer.pad_token_id, **generation)


def _load(systems: list[System]) -> tuple[Any, list[str]]:
    """The base with the systems' adapters beside each other, and the adapter name of each; '' is the base."""
    from transformers import GenerationConfig

    run = systems[0].run
    _, dtype, four_bit, _ = systems[0].loads
    click.echo(f"loading {run.config['base_model']} ({dtype}{', 4 bit' if four_bit else ''}) …", err=True)
    loaded = loading.load_base(run, quantized=four_bit)
    grouped_query.use()
    # The model's own sampling defaults would be mixed into every call.
    loaded.generation_config = GenerationConfig()
    names = []
    for number, system in enumerate(systems):
        names.append(f"adapter{number}" if system.adapter else "")
        if system.adapter:
            loaded = loading.load_adapter(loaded, system.adapter, names[-1])
    return loaded.eval(), names


def _active(model: Any, name: str) -> Any:
    """A context in which one adapter, or the bare base, answers."""
    if name:
        model.set_adapter(name)
        return contextlib.nullcontext()
    return model.disable_adapter() if hasattr(model, "disable_adapter") else contextlib.nullcontext()
