"""Every tool, killed at its writes and between them: the same command ends as if nothing had happened.

A few faults here; `make faults` makes many more and keeps their count in results/faults.json.
"""

import collections
import concurrent.futures
import json
import random
import signal

from lora_recipes import ROOT
from lora_recipes.results import result_files
from lora_recipes.support import files

import pytest
from faults import SAME, Harness, left_over

pytestmark = pytest.mark.slow

SHARES = {
    "train": 0.28,
    "train with DeepSpeed": 0.08,
    "axolotl": 0.07,
    "axolotl with DeepSpeed": 0.03,
    "eval": 0.16,
    "benchmark": 0.12,
    "merge": 0.16,
    "report": 0.1,
}
FEW = {"train": 3, "train with DeepSpeed": 1, "eval": 2, "benchmark": 1, "merge": 2, "report": 1}


@pytest.fixture(scope="module")
def harness(tmp_path_factory, libraries, axolotl_libraries):
    random.seed(0)
    return Harness(tmp_path_factory.mktemp("faults"), libraries, axolotl_libraries)


@pytest.fixture(scope="module")
def tally(request):
    """Faults and survivals by command; kept in results/ by the long form."""
    found = collections.defaultdict(lambda: {"faults": 0, "survived": 0, "places": []})
    yield found
    total = {name: sum(counts[name] for counts in found.values()) for name in ("faults", "survived")}
    print(f"\n{total['faults']} faults, {total['survived']} survived")
    if request.config.getoption("--faults"):
        content = {**total, "commands": found, "environment": result_files.environment()}
        files.write_text(ROOT / "results" / "faults.json", json.dumps(content, indent=1) + "\n")


def plan(events, seconds, count):
    """Where and how to hit: every third fault at some moment, the others spread over the changes of files."""
    places = [int(1 + n * len(events) / count) for n in range(count)]
    for number, place in enumerate(places):
        kind = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 4]
        timed = number % 3 == 2
        yield {"after": random.uniform(0.2, 0.9) * seconds, "number": kind} if timed else {"at": place, "number": kind}


@pytest.mark.parametrize("command", SHARES)
def test_a_command_that_was_hit_ends_as_if_nothing_had_happened(command, harness, tally, request):
    wanted = request.config.getoption("--faults")
    count = round(wanted * SHARES[command]) if wanted else FEW.get(command, 0)
    if not count:
        pytest.skip("Axolotl is killed in test_axolotl.py, and by `make faults`")
    expected, changes = harness.whole(command), harness.events[command]
    for fault in plan(changes, harness.seconds[command], count):
        tally[command]["faults"] += 1
        ended = harness.disturbed(command, **fault)
        tally[command]["faults"] -= not ended.faults  # it had ended before
        place = changes[fault["at"] - 1] if "at" in fault else f"after {fault['after']:.1f} s"
        SAME[command](expected, ended.folder)
        assert left_over(ended.folder) == [], ended.said
        tally[command]["survived"] += ended.faults
        tally[command]["places"].append(f"{signal.Signals(fault['number']).name} at {place}")


@pytest.mark.parametrize("command", ["train", "eval", "merge"])
def test_of_two_at_once_the_second_waits_or_says_so(command, harness):
    folder = harness.stage(f"{command}-twice", harness.start(command))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        ended = list(pool.map(lambda _: harness.run(command, folder)[:2], range(2)))
    if command == "train":
        ended.sort()
        assert [code for code, _ in ended] == [0, 1], ended
        assert "another process trains into it" in ended[1][1] and "Traceback" not in ended[1][1]
    else:
        assert [code for code, _ in ended] == [0, 0], ended
    SAME[command](harness.whole(command), folder)
    assert left_over(folder) == []
