"""What lm-eval's tinyMMLU and tinyTruthfulQA need beyond lm-eval, and whether it is here.

Their scores are gp-IRT estimates (Polo et al., tinyBenchmarks, 2024) made by the package
tinyBenchmarks, which is on GitHub only. It reads its parameters from a pickle in the working
directory, and newer versions download it there without a hash. So the file is expected in .cache/ and read
once by an unpickler that knows arrays and plain values only; what it read is written anew, under the hash of
the original, and scoring runs where that lies: the original is never unpickled by anything else.
"""

import hashlib
import importlib.util
import pickle
import threading
from pathlib import Path
from typing import Any

from lora_recipes import ROOT
from lora_recipes.support import files

DATASETS = {"tinyMMLU": "tinyBenchmarks/tinyMMLU", "tinyTruthfulQA": "tinyBenchmarks/tinyTruthfulQA"}
METRICS = {"tinyMMLU": "acc_norm", "tinyTruthfulQA": "acc"}

FOLDER = ROOT / ".cache" / "tinybenchmarks"
_PARAMETERS = FOLDER / "tinyBenchmarks.pkl"
"""As fetched; the plain arrays are in FOLDER / "plain" / hash / the same name."""
_PATIENCE = 4.0
"""Seconds that the Hub has to answer before it counts as out of reach."""

_ARRAY_CLASSES = {
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class OutOfReach(Exception):
    """What a task lacks and how to get it, in a sentence's second half."""


def require(name: str, limit: int | None) -> str:
    """A hash of the parameters and the questions of a task. Raises OutOfReach for the first thing that it lacks."""
    package = importlib.util.find_spec("tinyBenchmarks")
    if package is None or package.origin is None:  # a folder of that name, as the data set's, is no package
        raise OutOfReach(
            "its score is estimated by the package tinyBenchmarks, which is not installed; "
            "`pip install git+https://github.com/felipemaiapolo/tinyBenchmarks`"
        )
    if limit is not None:
        raise OutOfReach("its estimate needs all of its questions; leave out --limit")
    if not _PARAMETERS.is_file():
        raise OutOfReach(
            f"the parameters of tinyBenchmarks are missing; put {_PARAMETERS.name} from its repository "
            f"at {files.relative(_PARAMETERS)}"
        )
    digest = hashlib.sha256(_PARAMETERS.read_bytes()).hexdigest()
    _convert(_PARAMETERS, plain_folder(digest))
    revision = _revision(DATASETS[name])
    try:
        load(name)
    except Exception as error:  # datasets and the Hub's client raise a score of types
        words = " ".join(str(error).split())[:200]
        raise OutOfReach(f"its questions ({DATASETS[name]}) cannot be loaded ({words}); try again later") from None
    return hashlib.sha256((digest + revision).encode()).hexdigest()


def load(name: str) -> dict[str, Any]:
    """Name -> lm-eval's task object, with its questions."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    folder = Path(str(lm_eval.__file__)).parent / "tasks" / "tinyBenchmarks"
    return dict(TaskManager(include_path=str(folder), include_defaults=False).load_task_or_group(name))


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAY_CLASSES:
            raise OutOfReach(
                f"{_PARAMETERS.name} asks for {module}.{name}, which arrays do not need and which could run "
                "anything; fetch the original file"
            )
        return super().find_class(module, name)


def plain_folder(digest: str = "") -> Path:
    """Where the plain arrays of the parameters lie: of those with a hash, or of those that are there now."""
    return FOLDER / "plain" / (digest or hashlib.sha256(_PARAMETERS.read_bytes()).hexdigest())[:16]


def _convert(path: Path, folder: Path) -> None:
    """Write a pickle's arrays anew. Raises OutOfReach for one with more in it: tinyBenchmarks would run it unseen."""
    if (folder / path.name).is_file():
        return
    try:
        with path.open("rb") as file:
            found = _Arrays(file).load()
        if not isinstance(found, dict) or not {"mmlu", "truthfulqa"} <= set(found):
            raise ValueError("no parameters of mmlu and truthfulqa")
    except (pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, ImportError, TypeError) as error:
        raise OutOfReach(f"{files.relative(path)} cannot be read ({error}); fetch it again") from None
    files.write_bytes(folder / path.name, pickle.dumps(found))


def _revision(dataset: str) -> str:
    """The commit of a data set on the Hub, asked once and for some seconds at most.

    In a thread, since looking a host up can hang for longer than any time-out of the request.
    """
    from huggingface_hub import HfApi

    answers: list[str] = []

    def ask() -> None:
        try:
            answers.append(str(HfApi().dataset_info(dataset, timeout=_PATIENCE).sha))
        except Exception:  # whatever the reason, it is not to be had
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not answers:
        raise OutOfReach(f"its questions ({dataset}) are on the Hub, which cannot be reached; run it with a network")
    return answers[0]
