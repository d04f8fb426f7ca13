"""What lm-eval's tinyBenchmarks need beyond lm-eval, and whether it is here.

Their scores are gp-IRT estimates (Polo et al., tinyBenchmarks, 2024) made by the package
tinyBenchmarks, which is on GitHub only. It unpickles its parameters from the working directory, and
newer versions download them there without a hash. A pickle can run code, and the authors publish no hash
that could be pinned here: so scoring runs where the file was put by hand, and only as long as the file is
the one whose sha256 its user wrote down beside it.
"""

import importlib.util

from lora_recipes import ROOT
from lora_recipes.support import files

TASKS = "tinyBenchmarks"
"""The folder of their definitions in lm-eval's tasks."""

FOLDER = ROOT / ".cache" / "tinybenchmarks"
"""Where the parameters lie, and the working directory of a score."""

_NAME = "tinyBenchmarks.pkl"


class OutOfReach(Exception):
    """What a task lacks and how to get it, in a sentence's second half."""


def require(limit: int | None) -> str:
    """The sha256 of the parameters. Raises OutOfReach for the first thing that a score lacks."""
    package = importlib.util.find_spec("tinyBenchmarks")
    if package is None or package.origin is None:  # a folder of that name, as the data set's, is no package
        raise OutOfReach(
            "its score is estimated by the package tinyBenchmarks, which is not installed; "
            "`pip install git+https://github.com/felipemaiapolo/tinyBenchmarks`"
        )
    if limit is not None:
        raise OutOfReach("its estimate needs all of its questions; leave out --limit")
    parameters, written = FOLDER / _NAME, FOLDER / f"{_NAME}.sha256"
    if not parameters.is_file():
        raise OutOfReach(
            f"the parameters of tinyBenchmarks are missing; put {_NAME} from its repository at "
            f"{files.relative(parameters)}"
        )
    digest = files.sha256(parameters)
    expected = files.read_text(written).split()[:1] if written.is_file() else []
    if expected != [digest]:
        told = f"says {expected[0][:12]}…" if expected else "is missing"
        raise OutOfReach(
            f"{files.relative(parameters)} is a pickle, which can run code when it is read. Its sha256 is {digest}, "
            f"and {written.name} beside it {told}: write the sha256 of the file that you trust there (`sha256sum`)"
        )
    return digest
