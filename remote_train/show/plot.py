"""Curves of runs as a picture: a row for each figure, a column for each axis. The only file that imports matplotlib.

It draws with Agg or as SVG, never on a display, and the same lines give the same bytes. Colours are Okabe and Ito's, which
colour-blind people can tell apart, with another dash for each so that print does too.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from remote_train.errors import UsageError
from remote_train.metrics.series import choose_time_unit
from remote_train.show.neutral import neutral_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from remote_train.metrics.series import Line

HINT = "pip install 'remote-train[plot]'"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
TITLES = {"loss": "loss", "mfu": "MFU, % of the peak", "tokens": "tokens/s"}
WIDTH, HEIGHT, HEAD = 5.4, 2.6, 0.35  # inches: of a panel, and of a line of the legend
DOTS = 144
_STYLE = {
    "svg.hashsalt": "remote-train",
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "path.simplify": False,
    "text.parse_math": False,  # a name with two dollars is a name
}


def check_drawing() -> None:
    """Raise UsageError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401, ICN001, PLC0415  (an extra, and half a second: only `plot` pays)
    except ImportError:
        raise UsageError("drawing needs matplotlib, which is not installed", hint=HINT) from None


def render_plot(lines: Sequence[Line], kind: str, *, log: bool = False) -> bytes:
    """Draw lines as `png` or `svg`; `log`: the loss on a logarithmic scale."""
    import matplotlib as mpl  # noqa: PLC0415  (as above)
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  (as above)
    from matplotlib.figure import Figure  # noqa: PLC0415  (as above)

    whats = list(dict.fromkeys(line.what for line in lines))
    axes = list(dict.fromkeys(line.axis for line in lines))
    names = list(dict.fromkeys(line.run for line in lines))
    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # its stubs list the keys one by one
        head = HEAD * (-(-len(names) // (2 * len(axes)))) + 0.1
        height = HEIGHT * len(whats) + head
        figure = Figure(figsize=(WIDTH * len(axes), height), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(len(whats), len(axes), squeeze=False, sharex="col", sharey="row")
        for row, what in enumerate(whats):
            for column, axis in enumerate(axes):
                chosen = [line for line in lines if (line.what, line.axis) == (what, axis)]
                _draw_panel(panels[row][column], chosen, {name: n for n, name in enumerate(names)}, log=log)
                _label(panels[row][column], chosen, what, first=column == 0, last=row == len(whats) - 1)
        _place_legend(figure, panels, len(axes))
        return _write(figure, kind)


def _write(figure: Figure, kind: str) -> bytes:
    target = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(target, format=kind, dpi=DOTS, metadata=metadata)
    return target.getvalue()


def _draw_panel(panel: Axes, lines: Sequence[Line], places: Mapping[str, int], *, log: bool) -> None:
    longest = max((x for line in lines for x, _ in line.points), default=0.0)
    for line in lines:
        place = places[line.run]
        size = choose_time_unit(longest)[1] if line.axis == "time" else 1.0
        factor = 100.0 if line.what == "mfu" else 1.0
        panel.plot(
            [x / size for x, _ in line.points],
            [y * factor for _, y in line.points],
            color=COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place // len(COLOURS) % len(DASHES)]
            if len(places) > len(COLOURS)
            else DASHES[place % 4],
            linewidth=1.4,
            marker="." if len(line.points) < 30 else None,
            label=f"{neutral_text(line.run)} on {neutral_text(line.host)}"
            if line.host
            else neutral_text(line.run),
            gid=f"line-{place}-{line.what}-{line.axis}",
        )
    if log and lines and lines[0].what == "loss":
        panel.set_yscale("log")


def _label(panel: Axes, lines: Sequence[Line], what: str, *, first: bool, last: bool) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter  # noqa: PLC0415  (as above)

    sources = sorted({line.source for line in lines})
    if first:
        panel.set_ylabel(f"{TITLES[what]}\n(from {', '.join(sources)})")
    if what != "loss":
        panel.set_ylim(bottom=0)
    if what == "tokens":
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if not lines or not last:
        return
    if lines[0].axis == "step":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
        panel.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        panel.set_xlabel("step")
    else:
        longest = max((x for line in lines for x, _ in line.points), default=0.0)
        panel.set_xlim(left=0)
        panel.set_xlabel(f"{choose_time_unit(longest)[0]} since the run began")


def _place_legend(figure: Figure, panels: Any, columns: int) -> None:  # noqa: ANN401  (an array of numpy's)
    """Name each run once, above all panels: not every run has every figure."""
    # Asked for one by one: a legend leaves out labels that begin with an underscore.
    found = {str(drawn.get_label()): drawn for panel in panels.flat for drawn in panel.get_lines()}
    columns = min(len(found), 2 * columns)
    labels, handles = zip(*found.items(), strict=True)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)
