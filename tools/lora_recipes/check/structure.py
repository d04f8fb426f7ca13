"""Keys: unknown, written twice, of the wrong type, or dropped in Axolotl's newest release."""

import itertools
from typing import Any

from lora_recipes.check.checked_run import CheckedRun
from lora_recipes.check.findings import Finding
from lora_recipes.config import keys, limits, runfile, yamlfile

_MOST = 50
"""Mistakes that are reported: the nearest key to each takes a while to find."""

_EXPECTED = {
    "duplicate-key": "each key once",
    "text-number": "a number",
    "unknown-key": "a key of Axolotl",
    "impossible-value": "a value that can be trained with",
    "wrong-type": "the type that Axolotl gives the key",
}


def check(checked: CheckedRun) -> None:
    """Unknown keys at any level, duplicates, text where a number is meant, missing and dropped keys."""
    document = checked.given.document
    known, complete = keys.known_to(checked.config.get("plugins"))
    told = {problem.path for problem in document.problems}
    by_key = (one for one in keys.problems(document, (), document.data, known) if one.path not in told)
    problems = list(itertools.islice(itertools.chain(document.problems, by_key, limits.problems(document)), _MOST + 1))
    if len(problems) > _MOST:
        checked.report.skip("further keys", f"{_MOST} are wrong; mend those first")
    for problem in problems[:_MOST]:
        severity = "error" if complete or problem.kind != "unknown-key" or len(problem.path) > 1 else "warning"
        _add(checked, severity, problem)
    for key in runfile.NEEDED:
        if not checked.config.get(key) and key != "datasets":
            checked.error("missing-key", key, "it is not in the file", "a value", "see recipes/ for examples")
    _dropped(checked)
    table = keys.table()
    checked.report.fact(
        "keys", len(document.lines), f"{len(checked.config)} at the top level, held against Axolotl {table['axolotl']}"
    )


def _add(checked: CheckedRun, severity: str, problem: yamlfile.Problem) -> None:
    checked.report.findings.append(
        Finding(
            severity,
            problem.kind,
            yamlfile.dotted(problem.path),
            problem.line,
            problem.found,
            _EXPECTED[problem.kind],
            problem.fix,
        )
    )


def _dropped(checked: CheckedRun) -> None:
    newest = keys.table()["newest"]
    for key in sorted(set(checked.config) & set(newest["dropped"])):
        checked.warning(
            "dropped-key",
            key,
            f"Axolotl {newest['axolotl']} no longer has this key and would ignore it",
            f"a key that both Axolotl {keys.table()['axolotl']} and {newest['axolotl']} have",
            newest["dropped"][key] or "stay with the pinned Axolotl, or delete it",
        )


def unknown_keys(checked: CheckedRun) -> set[str]:
    """The known keys nearest to the unknown ones: what a missing key was probably meant to be."""
    found: Any = [one.key for one in checked.report.findings if one.check == "unknown-key"]
    return {keys.nearest(key, keys.schema()).partition("'")[2].partition("'")[0] for key in found}
