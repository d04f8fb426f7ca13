"""Figures as they are written."""

from lora_recipes.results import tables


def test_figures_are_written_so_that_they_can_be_read() -> None:
    assert [tables.number(value) for value in (0.12345, 12345, 123.456, None, float("nan"), True)] == [
        "0.1235",
        "12,345",
        "123.46",
        "–",
        "–",
        "–",
    ]
    assert [tables.duration(value) for value in (4.4, 125, 3721, None)] == ["4 s", "2 min 05 s", "1 h 02 min", "–"]
    assert tables.difference({"mean": 0.1, "low": 0.05, "high": 0.15}) == "+0.1000 [+0.0500, +0.1500] *"
    assert tables.difference({"mean": 0.1, "low": -0.1, "high": 0.3}) == "+0.1000 [-0.1000, +0.3000]"
    assert tables.difference(None) == "–"
