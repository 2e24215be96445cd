"""The page's line charts, as SVG text: readable in print, in grey, and by every kind of colour vision."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from trainorder.report import records, words
from trainorder.report.words import Bwt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#B65290", "#8C6D00", "#56B4E9", "#444444")
"""After Okabe and Ito, darkened where thin lines need it; markers and labels say the same again."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#767676"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trainorder",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9a9a9a",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
}


def along(bwt: Bwt, metric: str, label: str) -> str | None:
    """One panel per order: `metric` of every task at the base and after each phase; thin lines are seeds."""
    orders = {n: o for n, o in words.shown(bwt).items() if o["along"].get(metric)}
    if not orders:
        return None
    wanted = [t for t in bwt["tasks"] if any(t in o["along"][metric] for o in orders.values())]
    with _panels(len(orders), 2.5, share=True) as (figure, panels):
        for axes, (name, order) in zip(panels, orders.items(), strict=False):
            for task in wanted:
                values = order["along"][metric].get(task)
                if values is not None:
                    seeds = [s.get(metric, {}).get(task) for s in order["along_seeds"].values()]
                    _line(axes, values, seeds, bwt["tasks"].index(task), task in bwt["held_out"])
            _positions(axes, order["phases"])
            axes.set_title(name)
        panels[0].set_ylabel(label)
        shown = [
            v for o in orders.values() for t in wanted for v in o["along"][metric].get(t, []) if v
        ]
        if metric.startswith("entropy") and max(shown, default=1) > 4 * min(shown, default=1):
            _log_axis(panels[0])
        names = words.task_names(bwt)
        _legend(figure, [(names[t], bwt["tasks"].index(t), t in bwt["held_out"]) for t in wanted])
        return _svg(figure, f"{label} along each order")


def judges(bwt: Bwt) -> str | None:
    """Judged tasks: what the training judge says, what a judge that trained nothing says (where there is one), and the hidden taste."""
    apart = [("score", "held-out judge")] if set(bwt["judged"]) - set(bwt["same_judge"]) else []
    orders = {n: o for n, o in words.shown(bwt).items() if o["along"].get("reward_judge")}
    taste = (
        [("gold", "hidden gold taste")]
        if any(o["along"].get("gold") for o in orders.values())
        else []
    )
    lines = [("reward_judge", "training judge"), *apart, *taste]
    if not orders or not bwt["judged"]:
        return None
    with _panels(len(orders), 2.3, share=True) as (figure, panels):
        for axes, (name, order) in zip(panels, orders.items(), strict=False):
            for number, (metric, _) in enumerate(lines):
                for task in bwt["judged"]:
                    values = order["along"].get(metric, {}).get(task)
                    if values is not None:
                        seeds = [s.get(metric, {}).get(task) for s in order["along_seeds"].values()]
                        _line(axes, values, seeds, number, metric == "gold")
            _positions(axes, order["phases"])
            axes.set_title(name)
        panels[0].set_ylabel("score in [0, 1]")
        _legend(figure, [(title, number, m == "gold") for number, (m, title) in enumerate(lines)])
        return _svg(figure, "judges along each order")


def predicted(bwt: Bwt) -> str | None:
    """Predicted against measured final mean, a panel per predictor and a point per order, with the diagonal.

    Up to 7 orders have a colour each, and intervals; more are coloured by the phase they begin with.
    """
    orders = bwt["prediction"]["orders"]
    known = {
        name: [order for order, row in orders.items() if row["by"].get(name) is not None]
        for name in bwt["prediction"]["predictors"]
    }
    known = {name: found for name, found in known.items() if found}
    if not known:
        return None
    few = len(orders) <= len(COLOURS)
    firsts = list(dict.fromkeys(bwt["orders"][order]["phases"][0] for order in orders))
    groups = list(orders) if few else words.phases(bwt, firsts)
    with _panels(len(known), 3.0, share=True) as (figure, panels):
        for axes, (name, found) in zip(panels, known.items(), strict=False):
            ends = []
            for order in found:
                x, y = orders[order]["by"][name], orders[order]["measured"]
                number = groups.index(order if few else bwt["orders"][order]["phases"][0])
                axes.errorbar(
                    x["value"], y["value"], xerr=_reach(x) if few else None, yerr=_reach(y) if few else None,
                    fmt=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], elinewidth=1,
                    capsize=2, markersize=6 if few else 5, alpha=1 if few else 0.85,
                )  # fmt: skip
                ends += [x["value"], y["value"]]
            axes.plot(
                [min(ends), max(ends)], [min(ends), max(ends)], color=GREY, linewidth=1,
                linestyle=(0, (4, 3)), zorder=0,
            )  # fmt: skip
            axes.set_title(name)
            axes.set_xlabel(f"predicted\n{_agreement(bwt, name)}", fontsize=8)
        panels[0].set_ylabel("measured (test)")
        _legend(figure, [(g if few else f"{g} first", i, None) for i, g in enumerate(groups)])
        return _svg(figure, "predicted against measured")


def _agreement(bwt: Bwt, predictor: str) -> str:
    """Bias, spread and rank correlation of a predictor, on three lines."""
    found = bwt["prediction"]["predictors"][predictor]
    if found is None:
        return "-"
    shown = words.correlation(found["spearman"], found["n"]).replace(" (", "\n(")
    bias, spread = words.signed(found["mean_error"]), words.score(found["spread"])
    return f"bias {bias}, spread {spread}\nSpearman {shown}"


def learning(bwt: Bwt, metric: str, label: str, *, least: int = 1) -> str | None:
    """One panel per phase: a metric of all rollouts by step, a line per place in an order where the phase was trained.

    Lines of fewer than `least` steps are left out. A phase of several tasks has a line per task, where these are logged:
    `task/math/entropy` of `rollout/entropy`.
    """
    phases = {phase: bwt["phases"][phase] for phase in words.phases(bwt, bwt["phases"])}
    found: dict[str, dict[str, Sequence[tuple[int, float]]]] = {p: {} for p in phases}
    for node in records.nodes(bwt):
        phase = node.rpartition("--")[2]
        if phase in phases and "--" in node:
            for task, curve in _task_curves(node, metric, phases[phase]).items():
                key = node if len(phases[phase]) == 1 else f"{node}/{task}"
                if len(curve) >= least:
                    found[phase][key] = curve
    found = {phase: lines for phase, lines in found.items() if lines}
    if not found:
        return None
    with _panels(len(found), 2.4, share=metric.endswith("reward")) as (figure, panels):
        for axes, (phase, lines) in zip(panels, found.items(), strict=False):
            several = len(phases[phase]) > 1
            for key, curve in lines.items():
                task = key.partition("/")[2] or phases[phase][0]
                depth = key.count("--") - 1
                colour = (
                    COLOURS[bwt["tasks"].index(task)]
                    if several and task != ALL
                    else PLACES[depth % len(PLACES)]
                )
                steps, values = zip(*_smooth(curve), strict=True)
                place = (
                    f"after {_before(key)}" if len(lines) <= LEGEND else f"{depth} phases before it"
                )
                name = task if several else place if depth else "from the base"
                axes.plot(
                    steps,
                    values,
                    color=colour,
                    linewidth=1.4 if len(lines) <= LEGEND else 0.9,
                    label=name,
                    linestyle=DASHES[depth % 4],
                )
            axes.set_title(phase)
            axes.set_xlabel("step")
            handles, labels = axes.get_legend_handles_labels()
            unique = dict(zip(labels, handles, strict=True))
            rises = sum(curve[-1][1] - curve[0][1] for curve in lines.values()) > 0
            free: Any = "upper left" if rises else "upper right"
            axes.legend(
                unique.values(),
                unique.keys(),
                fontsize=7,
                loc="best" if len(lines) <= LEGEND else free,
                handlelength=1.8,
                labelspacing=0.25,
            )
        panels[0].set_ylabel(label)
        return _svg(figure, f"{label} while training")


def divergences(bwt: Bwt) -> list[tuple[str, str]]:
    """Drawing and caption of each KL over steps that some phase logged, from KLS; not where all of it is rounding."""
    drawn = []
    for metric, label, caption in KLS:
        curves = [records.curves(node) for node in records.nodes(bwt)]
        found = [c[metric] for c in curves if len(c.get(metric, ())) > 1]
        if any(abs(value) > ROUNDING for curve in found for _, value in curve):
            svg = learning(bwt, metric, f"{label}, nats per token", least=2)
            drawn += [(svg, caption)] if svg else []
    return drawn


KLS = (
    ("rollout/kl", "KL to the parent", "KL to the phase's parent on the phase's own answers: how far it has moved."),
    ("rl/kl_old", "KL of the update", "KL to the policy that sampled, within a step: how old the answers were when they were learned."),
    ("rollout/mismatch_kl", "KL of the sampler", "KL of the engine that sampled to the model that is trained, before the update: numbers that differ though the weights do not."),
)  # fmt: skip
"""Metric, name and caption of every KL that may be drawn."""
ROUNDING = 1e-6
"""KL per token below which two policies differ by rounding only."""
ALL = "all tasks"
LEGEND = 6
"""Above this number of lines a legend names places in an order instead of the phases before."""
PLACES = ("#1a1a1a", "#2b7bba", "#c2571a", "#8a8a8a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1)), (0, (6, 1.5, 1.5, 1.5)))
"""Line styles by place in the order, so that lines differ without colour."""


def _task_curves(node: str, metric: str, tasks: Sequence[str]) -> records.Curves:
    logged = records.curves(node)
    alone = logged.get(metric) if len(tasks) == 1 else None
    quantity = metric.rpartition("/")[2]
    curves = {task: logged.get(f"task/{task}/{quantity}") or alone for task in tasks}
    own = {task: curve for task, curve in curves.items() if curve}
    return own or ({ALL: logged[metric]} if metric in logged else {})


def _before(node: str) -> str:
    return ", ".join(node.split("--")[1:-1])


def _smooth(curve: Sequence[tuple[int, float]], window: int = 5) -> list[tuple[int, float]]:
    """Mean over a centred window of steps.

    >>> _smooth([(0, 0.0), (1, 3.0), (2, 6.0)], window=3)
    [(0, 1.5), (1, 3.0), (2, 4.5)]
    """
    half = window // 2
    values = [v for _, v in curve]
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [(step, sum(p) / len(p)) for (step, _), p in zip(curve, parts, strict=True)]


def _line(
    axes: Axes, values: Sequence[float | None], seeds: Sequence[Any], number: int, faint: bool
) -> None:
    colour, style = COLOURS[number % len(COLOURS)], (0, (3, 2)) if faint else "-"
    xs = range(len(values))
    if len(seeds) > 1:
        for seed in seeds:
            if seed is not None:
                axes.plot(xs, [_nan(v) for v in seed], color=colour, linewidth=0.6, alpha=0.5)
    axes.plot(
        xs,
        [_nan(v) for v in values],
        color=colour,
        linestyle=style,
        marker=MARKERS[number % len(MARKERS)],
    )


def _positions(axes: Axes, phases: Sequence[str]) -> None:
    axes.set_xticks(
        range(len(phases) + 1), ["base", *phases], rotation=30 if len(phases) > 2 else 0
    )
    for label in axes.get_xticklabels():
        label.set_horizontalalignment("right" if len(phases) > 2 else "center")
    axes.set_xlim(-0.2, len(phases) + 0.2)


def _log_axis(axes: Axes) -> None:
    """A log scale with plain numbers, so that small and large entropies show their changes alike."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, entries: Sequence[tuple[str, int, bool | None]]) -> None:
    """One entry per (name, colour, dashed); None for points without a line."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)],
            linestyle="" if faint is None else (0, (3, 2)) if faint else "-", label=name,
        )
        for name, i, faint in entries
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 7), fontsize=9)


@contextmanager
def _panels(
    count: int, height: float, *, share: bool = False, width: float | None = None
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with `count` panels, at most five in a row."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(5, count)
    width = width or max(11.0 * columns / 5, 5.0)
    rows = -(-count // columns)
    with pyplot.rc_context(STYLE):
        figure, grid = pyplot.subplots(
            rows,
            columns,
            figsize=(width, height * rows),
            sharey=share,
            squeeze=False,
            layout="constrained",
        )
        panels = list(grid.flat)
        for unused in panels[count:]:
            unused.set_visible(False)
        try:
            yield figure, panels[:count]
        finally:
            pyplot.close(figure)


def _svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that scales with the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width = round(98 * figure.get_figwidth())  # pixels of the page: 11 inches are its whole width
    return text.replace(
        "<svg ", f'<svg style="max-width:{width}px" role="img" aria-label="{title}" ', 1
    )


def _reach(i: Mapping[str, Any]) -> list[list[float]] | None:
    """Distances from the value to both ends, as errorbar wants them."""
    if i["low"] is None:
        return None
    return [[max(i["value"] - i["low"], 0.0)], [max(i["high"] - i["value"], 0.0)]]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value
