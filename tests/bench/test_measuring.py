"""Benchmarks run their ways in turn, and say of each what it measured or why it could not be run."""

import json
import sys

import measuring
import pytest


def way(name, code):
    return measuring.Way(name, name, [sys.executable, "-c", code])


def test_ways_take_turns_and_their_medians_are_kept(tmp_path, monkeypatch):
    order = tmp_path / "order"
    note = f"open({str(order)!r}, 'a').write(%r); print('chatter'); print('{{\"seconds\": 2.5, \"way\": \"text\"}}')"
    ways = [way("one", note % "1"), way("slow", note % "s"), way("two", note % "2")]
    ways[1].once = True
    measured = measuring.interleave(ways, 3, tmp_path / "log")
    assert order.read_text() == "1s21212" and len(measured["slow"]) == 1
    assert measuring.medians(measured["one"])["seconds"] == 2.5 and "way" not in measuring.medians(measured["one"])
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    saved = json.loads(measuring.save("it", ways, measured, "its-file", rows=3).read_text())
    assert saved["benchmark"] == "it" and (tmp_path / "its-file.json").exists()
    assert saved["settings"] == {"rows": 3, "rounds": 3} and len(saved["ways"]["two"]["rounds"]) == 3
    assert saved["environment"]["hardware"]["cores"] >= 1


def test_what_is_there_is_told_after_each_way_failed_or_not(tmp_path):
    ways = [way("one", "print('{\"seconds\": 1}')"), way("broken", "raise SystemExit('no such peer')")]
    told = []
    measuring.interleave(ways, 2, tmp_path / "log", lambda found: told.append([len(runs) for runs in found.values()]))
    assert told == [[1, 0], [1, 0], [2, 0]]


def test_an_interrupted_benchmark_keeps_its_whole_rounds(tmp_path, monkeypatch):
    runs = iter([{"seconds": 1}, {"seconds": 2}, {"seconds": 3}])

    def run(way, log):
        try:
            return next(runs)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(measuring, "_run", run)
    ways = [way("one", ""), way("two", "")]
    measured = measuring.interleave(ways, 3, tmp_path / "log")
    assert measured == {"one": [{"seconds": 1}], "two": [{"seconds": 2}]}
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    assert json.loads(measuring.save("it", ways, measured).read_text())["settings"] == {"rounds": 1}
    with pytest.raises(KeyboardInterrupt):
        measuring.interleave(ways, 3, tmp_path / "log")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit('no such peer')", "no such peer"),
        ("print('not JSON')", "it failed"),
        ("pass", "it failed"),
    ],
)
def test_a_way_that_fails_is_left_out_with_its_reason_and_the_others_go_on(tmp_path, code, reason):
    ways = [way("broken", code), way("whole", "print('{\"seconds\": 1}')")]
    measured = measuring.interleave(ways, 2, tmp_path / "log")
    assert reason in ways[0].absent and measured["broken"] == []
    assert len(measured["whole"]) == 2 and "$ " in (tmp_path / "log").read_text()
