"""The two plots of the report, as PNG: losses against steps, and F1 a system."""

import io
import math
from typing import Any

from lora_recipes.report import inputs
from lora_recipes.results.systems import System

# Okabe and Ito's palette, told apart by colour-blind eyes; black is the base's.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#A6761D"]
_BASE, _PUBLISHED = "#000000", "#767676"
_SMOOTH_FROM = 60
"""Logged losses a run from which on a running mean is drawn over the faint raw line."""


def losses(measured: list[System]) -> bytes | None:
    """Train and validation loss (nats a token) against the optimizer step, one panel a recipe."""
    trained = [system for system in measured if system.losses("loss")]
    if not trained:
        return None
    figure, axes = stacked([3.6] * len(_recipes(trained)))
    colours = _colours(measured)
    for axis, recipe in zip(axes, _recipes(trained), strict=True):
        members = [system for system in trained if system.recipe == recipe]
        logged = max(len(system.losses("loss")) for system in members)
        window = logged // 20 if logged >= _SMOOTH_FROM else 1
        for index, system in enumerate(members):
            # Variants that train alike lie on each other: the earlier, wider lines stay visible.
            extra = (len(members) - 1 - index) * min(1.0, 5 / len(members))
            _loss_line(axis, system, colours[system.name], window, extra)
        axis.set(title=recipe, xlabel="optimizer step", ylabel="loss (nats per token)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        _loss_legend(axis, {system.name: colours[system.name] for system in members}, window)
    return png(figure)


def _loss_line(axis: Any, system: System, colour: str, window: int, extra: float) -> None:
    steps, values = zip(*system.losses("loss"), strict=True)
    if window > 1:
        axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
    axis.plot(steps, _running_mean(values, window), color=colour, linewidth=1.5 + 1.1 * extra, solid_capstyle="round")
    if evaluated := system.losses("eval_loss"):
        style = {"linestyle": ":", "linewidth": 1.2, "marker": "o", "markerfacecolor": "white"}
        axis.plot(*zip(*evaluated, strict=True), color=colour, markersize=4.5 + 1.6 * extra, **style)


def _loss_legend(axis: Any, colours: dict[str, str], window: int) -> None:
    """Colours are variants, line styles are what was measured; beside the panel, off the data."""
    from matplotlib.lines import Line2D

    grey = "#555555"
    entries = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours.items()]
    train = f"train, mean of {window} logged" if window > 1 else "train, as logged"
    entries.append(Line2D([], [], color=grey, linewidth=1.5, label=train))
    if window > 1:
        entries.append(Line2D([], [], color=grey, linewidth=0.7, alpha=0.4, label="train, as logged"))
    entries.append(Line2D([], [], color=grey, linestyle=":", marker="o", markerfacecolor="white", label="validation"))
    axis.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False)


def _running_mean(values: tuple[float, ...], window: int) -> tuple[float, ...]:
    """Each value's mean with those before it, `window` of them at most."""
    parts = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return tuple(sum(part) / len(part) for part in parts)


def scores(measured: list[System], recipes: list[str]) -> bytes | None:
    """BERTScore F1 with its 95 % interval, one line a system and one panel a recipe.

    Published figures have no interval; they are hollow, grey and named for their publisher.
    """
    panels = {recipe: points for recipe in recipes if (points := _points(recipe, measured))}
    if not panels:
        return None
    figure, axes = stacked([0.9 + 0.34 * len(points) for points in panels.values()])
    for axis, (recipe, points) in zip(axes, panels.items(), strict=True):
        if points[0]["colour"] == _BASE and "low" in points[0]:
            axis.axvline(points[0]["mean"], color=_BASE, linestyle="--", linewidth=0.8)
        for height, point in enumerate(points):
            _score_point(axis, height, point)
        hollow = "hollow: published by others; " if any(p["colour"] == _PUBLISHED for p in points) else ""
        axis.set(title=recipe, xlabel=f"BERTScore F1 (bar: 95 % interval; {hollow}the axis does not begin at 0)")
        axis.set_yticks(range(len(points)), [point["name"] for point in points])
        axis.set_ylim(len(points) - 0.5, -0.8)
        axis.margins(x=0.15)
    return png(figure)


def _points(recipe: str, measured: list[System]) -> list[dict[str, Any]]:
    """Name, mean, interval and colour of each system of a recipe, the published last."""
    colours = _colours(measured)
    points = [
        {"name": system.name, "colour": colours[system.name], **system.metrics["bertscore_f1"]}
        for system in measured
        if system.recipe == recipe and _can_be_drawn(system.metrics.get("bertscore_f1"))
    ]
    models = {system.scored_with for system in measured if system.recipe == recipe}
    for row in inputs.published(recipe):
        # Figures of another scoring model have no place on the same axis.
        if "bertscore_f1" in row["metrics"] and models <= {"", row["bertscore_model"]}:
            name = f"{row['publisher']}: {row['system']}"
            points.append({"name": name, "colour": _PUBLISHED, "mean": row["metrics"]["bertscore_f1"]})
    return points


def _can_be_drawn(score: Any) -> bool:
    """Whether it is a mean, in its interval where it has one."""
    if not isinstance(score, dict) or score.get("mean") is None:
        return False
    low, high = (score["mean"] if score.get(end) is None else score[end] for end in ("low", "high"))
    return math.isfinite(high - low) and bool(low <= score["mean"] <= high)


def _score_point(axis: Any, height: int, point: dict[str, Any]) -> None:
    mean = point["mean"]
    known = point.get("low") is not None and point.get("high") is not None
    low, high = (point["low"], point["high"]) if known else (mean, mean)
    axis.errorbar(
        mean,
        height,
        xerr=[[mean - low], [high - mean]] if known else None,
        color=point["colour"],
        marker="o" if known else "D",
        markersize=7,
        markerfacecolor=point["colour"] if known else "white",
        capsize=4,
        elinewidth=1.8,
    )
    right = (high, height)
    axis.annotate(f"{mean:.4f}", right, xytext=(8, 0), textcoords="offset points", va="center", fontsize=9)


def _recipes(measured: list[System]) -> list[str]:
    return list(dict.fromkeys(system.recipe for system in measured))


def _colours(measured: list[System]) -> dict[str, str]:
    """One colour a variant, the same in all panels."""
    bases = {system.name for system in measured if system.is_base}
    names = [name for name in dict.fromkeys(system.name for system in measured) if name not in bases]
    return dict.fromkeys(bases, _BASE) | {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}


def stacked(heights: list[float]) -> tuple[Any, list[Any]]:
    """A figure of panels below each other, of these heights in inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(matplotlib.rcParamsDefault | {"figure.constrained_layout.h_pad": 0.12})
    figure, axes = pyplot.subplots(
        len(heights), 1, figsize=(8.5, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis in axes[:, 0]:
        axis.grid(color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[:, 0])


def png(figure: Any) -> bytes:
    from matplotlib import pyplot
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    pyplot.close(figure)
    # A palette is a third of the size; Pillow's default one would give some variants another hue.
    small_palette = Image.open(drawn).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
    small_palette.save(small, format="PNG", optimize=True)
    return small.getvalue()
