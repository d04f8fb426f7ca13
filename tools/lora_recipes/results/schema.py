"""What these tools read of result files, trainer states and answers files: the type and the range of each value.

Files are kept by hand too, and merged, cut and restored. What is not read may be anything; what is read is what a
tool of ours writes, or the file is refused with the name of the field. Imports pydantic (0.1 s).
"""

import math
import re
from typing import Annotated, Any

from lora_recipes.support import filenames, terminal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)

_LARGEST = 10**15
"""No figure of ours comes near it, and a plot can be drawn of it."""

_MESSAGES = {"missing": "missing", "value_error": "{error}"}
_WORDY = re.compile("Input should be |Value error, |(?<=a )valid | or instance of \\w+")
_EXPECTED = "expected {msg}, found {found}"


def _named(name: str) -> str:
    if not filenames.is_safe(name):
        raise ValueError(f"{terminal.shown(name)} is no name of a recipe or variant: {filenames.EXPECTED}")
    return name


def _small(number: float) -> float:
    if math.isfinite(number) and abs(number) > _LARGEST:
        raise ValueError(f"expected a number up to {_LARGEST:.0e}, found {number}")
    return number


Name = Annotated[str, AfterValidator(_named)]
Number = Annotated[float, AfterValidator(_small)]
"""May be no number, as where training diverged."""

Finite = Annotated[Number, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]


class _Read(BaseModel):
    """Fields of the very type that JSON has for them; others are not looked at."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Score(_Read):
    """A metric with its interval, or a paired difference."""

    mean: Number | None = None
    low: Number | None = None
    high: Number | None = None
    n: Count | None = None
    excludes_zero: bool | None = None


_KIND = Discriminator(lambda value: "score" if isinstance(value, dict) else "number")
Metric = Annotated[Annotated[Score, Tag("score")] | Annotated[Number | None, Tag("number")], _KIND]


class Difference(Score):
    """To another system: of one metric that it names, and of others under their names."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Metric] = Field(init=False)
    metric: str | None = None


class Logged(_Read):
    """An entry of what was logged in training."""

    step: Count | None = None
    epoch: Finite | None = None
    loss: Number | None = None
    eval_loss: Number | None = None
    train_loss: Number | None = None
    tokens: Finite | None = Field(None, alias="tokens/trainable")


class Hardware(_Read):
    gpu: str | None = None
    gpus: Count | None = None
    processor: str | None = None
    cores: Count | None = None


class Environment(_Read):
    git_commit: str | None = None
    git_dirty: bool | None = None
    python: str | None = None
    packages: dict[str, str] | None = None
    hardware: Hardware | None = None


class Scoring(_Read):
    model: str | None = None
    bert_score_hash: str | None = None


class Settings(_Read):
    max_new_tokens: Count | None = None


class RunFile(_Read):
    sha256: str | None = None


class _Measured(_Read):
    """What one tool measured, as result_files.section writes it, but for the metrics."""

    differences: dict[str, Difference] | None = None
    scores: dict[str, list[Number]] | None = None
    scoring: Scoring | None = None
    settings: Settings | None = None
    skipped: dict[str, str] | None = None
    split: str | None = None
    rows: Count | None = None
    limit: Count | None = None
    prompt_parity: bool | None = None
    log_history: list[Logged] | None = None
    wall_seconds: Number | None = None
    peak_memory_mb: Number | None = None
    run_file: RunFile | None = None
    environment: Environment | None = None


class Section(_Measured):
    metrics: dict[str, Metric] | None = None


class _TrainingMetrics(_Read):
    trained_tokens_an_epoch: Finite | None = None


class _Training(_Measured):
    metrics: _TrainingMetrics | None = None


class Result(_Read):
    """A result file: the system's name and, under the name of each tool or split, what was measured."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Section] = Field(init=False)
    recipe: Name
    variant: Name
    model: str | None = None
    training: _Training = Field(default_factory=_Training)


class Answer(_Read):
    """A line of an answers file."""

    row: Count
    question: str
    reference: str
    answer: str
    finished: bool
    new_tokens: Count
    reference_nats: Number
    settings: str
    batch_size: Annotated[int, Field(ge=1)] | None = None


History = TypeAdapter(list[Logged])


def mistake(kind: Any, value: Any) -> str:
    """`field: what is wrong with it` where a value is not of one of these kinds, else nothing."""
    try:
        (kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("score", "number"))
        words = _WORDY.sub("", first["msg"]).replace("a dictionary", "a mapping").replace("a int", "an int")
        form = _MESSAGES.get(first["type"], _EXPECTED)
        said = form.format(msg=words, found=terminal.shown(first["input"], 80), **first.get("ctx", {}))
        return f"{terminal.visible(place) or 'the whole'}: {said}"
    return ""
