"""An evaluation: what each system is asked, answered by systems that share a base on one loaded model."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_recipes.config.runfile import RunFile
from lora_recipes.data import questions
from lora_recipes.data.questions import Question
from lora_recipes.evaluation import answering
from lora_recipes.evaluation.answering import AnswersFile
from lora_recipes.inference import batch_size, decoding, shared_base
from lora_recipes.inference.shared_base import SharedBase
from lora_recipes.models import adapters, loading
from lora_recipes.results import systems
from lora_recipes.results.result_files import Stopwatch
from lora_recipes.results.systems import System
from lora_recipes.support import filenames, files, terminal

import click


@dataclass(frozen=True)
class Asked:
    """The questions of a split as the tokens of one tokenizer; systems that are asked alike share them."""

    tokenizer: Any
    questions: list[Question]
    prompt_mismatch: str
    """Where asking differs from training; '' when it does not."""
    end_tokens: list[int]


@dataclass
class Evaluation:
    """What one system is asked, under which settings, and what came of it."""

    system: System
    split: str
    asked: Asked
    questions: list[Question]
    """Those of `asked` within the limit."""
    settings: dict[str, Any]
    hashes: dict[int, str]
    """Of all rows of the split, also of those beyond a limit."""
    answers: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Row -> its line of the answers file."""
    answered: int = 0
    """Questions answered by this process; the others were answered before."""
    batch_size: int | None = None
    """Of the last answers; None when there is no telling."""
    seconds: float = 0.0
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.system.answers_path(self.split)

    def open_answers(self) -> AnswersFile:
        """Its answers so far; the lock of the file has to be held."""
        file = AnswersFile(self.path, self.hashes)
        self.answers = file.answers
        return file


def choose(runs: list[RunFile], base: bool, adapter: Path | None) -> list[System]:
    """The systems of a call, base models first.

    A base model of a recipe is measured once, in full precision; from the first run file that
    loads it so, if there is one. Raises click.ClickException for a missing, damaged or foreign adapter.
    """
    for run in runs:
        adapters.require(adapter or run.output_dir, run)
    bases: dict[Path, System] = {}
    for run in sorted(runs, key=lambda run: run.four_bit) if base else ():
        system = systems.of_base(run, systems.model_identity(run.model()))
        files.require_writable(system.folder)
        system.reserve()
        bases.setdefault(system.folder, system)
    chosen = [*bases.values(), *(systems.of_run(run, adapter or run.output_dir) for run in runs)]
    for system in chosen:
        if not filenames.is_safe(system.name):
            raise click.UsageError(f"--adapter: {terminal.shown(system.name)} names its results: {filenames.EXPECTED}.")
        files.require_writable(system.folder)
    return chosen


def prepare(chosen: list[System], split: str, limit: int | None, max_new_tokens: int) -> list[Evaluation]:
    """Read and tokenize the questions, once for systems asked alike; warn when they are not asked as trained."""
    known: dict[str, Asked] = {}
    found = []
    for system in chosen:
        key = questions.asked_alike(system.run)
        if key not in known:
            tokenizer = loading.load_tokenizer(system.run)
            ends = questions.end_tokens(system.run, tokenizer)
            known[key] = Asked(tokenizer, *questions.load(system.run, tokenizer, split), ends)
        _require_positions(system, known[key], limit, max_new_tokens)
        found.append(_evaluation(system, split, known[key], limit, max_new_tokens))
    return found


def _require_positions(system: System, asked: Asked, limit: int | None, max_new_tokens: int) -> None:
    """Raises click.ClickException for a question that with its answer is longer than the model has positions."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(system.run.model(), trust_remote_code=False).get_text_config(decoder=True)
    positions = int(getattr(config, "max_position_embeddings", None) or sys.maxsize)
    for one in asked.questions[:limit]:
        length = len(one.prompt_ids) + max(max_new_tokens, len(one.reference_ids))
        if length > positions:
            raise system.run.error(
                "base_model",
                f"{system.run.base_model} has {positions:,} positions; row {one.row + 1} with its answer can take "
                f"{length:,}: lower --max-new-tokens ({max_new_tokens}), or shorten the row.",
            )


def _evaluation(system: System, split: str, asked: Asked, limit: int | None, max_new_tokens: int) -> Evaluation:
    base = shared_base.loaded(system)
    settings = {
        "own_base": base.own is not None,  # beside an adapter that changed it answers were wrong once: none are taken
        "base_model": systems.model_identity(base.model),
        "adapter": questions.adapter_identity(system.adapter) if system.adapter else None,
        "dtype": base.dtype,
        "four_bit": base.in_4bit,
        "attn_implementation": str(base.attention),
        "backend": "transformers",  # one of two once: it stays, so that the answers of then are still taken
        "decoding": "greedy",
        "max_new_tokens": max_new_tokens,
        "end_tokens": asked.end_tokens,
    }
    if asked.prompt_mismatch:
        click.secho(
            f"WARNING: {system.run.name}: {system.name} is asked another prompt than the run file trains on, so the "
            f"scores say little about the training: {asked.prompt_mismatch}. Mend system_format and no_input_format.",
            fg="red",
            err=True,
        )
    hashes = questions.hashes(settings, asked.questions)
    return Evaluation(system, split, asked, asked.questions[:limit], settings, hashes)


def answer(evaluations: list[Evaluation], batch_size: int | None) -> None:
    """Answer what is missing, each base loaded once. The locks of the answers files have to be held.

    Without a batch size that of the answers so far, or else one by the free memory.
    Raises click.ClickException when the memory is too small for one question.
    """
    import torch

    waiting = {}
    for evaluation in evaluations:
        file = evaluation.open_answers()
        evaluation.batch_size = batch_size or file.batch_size
        if file.unanswered(evaluation.questions):
            waiting[evaluation.system] = (evaluation, file)
    for group in shared_base.groups(waiting):
        try:
            _answer_on_one_base([waiting[system] for system in group])
        except torch.OutOfMemoryError:
            raise click.ClickException(
                "out of memory with one question at a time; take a machine with more, the answers so far are kept."
            ) from None
        shared_base.release()


def _answer_on_one_base(waiting: list[tuple[Evaluation, AnswersFile]]) -> None:
    from transformers import GenerationConfig

    first = waiting[0][0]
    precision = f"{first.settings['dtype']}{', 4 bit' if first.settings['four_bit'] else ''}"
    click.echo(f"loading {first.system.run.base_model} ({precision}) …", err=True)
    shared = SharedBase([evaluation.system for evaluation, _ in waiting])
    # The model's own sampling defaults would be mixed into every call.
    shared.base.generation_config = GenerationConfig()
    fitting = min(
        batch_size.by_memory(shared.model, evaluation.questions, evaluation.settings["max_new_tokens"])
        for evaluation, _ in waiting
    )
    for evaluation, file in waiting:
        _answer_one(shared, evaluation, file, fitting)


def _answer_one(shared: SharedBase, evaluation: Evaluation, file: AnswersFile, fitting: int) -> None:
    watch, asked = Stopwatch(), evaluation.asked
    beginning = decoding.common_beginning([question.prompt_ids for question in evaluation.questions])
    limit = evaluation.settings["max_new_tokens"]
    with shared.active(evaluation.system) as model:
        evaluation.answered, evaluation.batch_size = answering.answer(
            file,
            decoding.Decoder(model, beginning, asked.tokenizer.pad_token_id, asked.end_tokens, limit),
            asked.tokenizer,
            evaluation.questions,
            asked.end_tokens,
            evaluation.batch_size or fitting,
            evaluation.system.label,
        )
    evaluation.seconds = watch.seconds()
