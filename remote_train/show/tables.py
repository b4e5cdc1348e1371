"""Tables: `ps`, `show`, `hosts list`, `hosts check`. The only file that imports rich.

Pure: plain mappings in, text out, ready for `Screen.output`. What a row says is decided elsewhere; what is absent
or None shows as a dash in a table and not at all in a list. On a terminal: its width, and colours. Elsewhere:
aligned plain text, nothing cut. No rules and frames: they hinder copying. Values may come from a host: each becomes neutral text first, and rich
gets it as Text, which is never read as markup.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from remote_train.host.life import FINAL
from remote_train.host.turns import find_users, is_foreign_busy
from remote_train.metrics.figures import render_mfu_cell
from remote_train.show.checkpoints import list_lines
from remote_train.show.explanation import list_use_lines
from remote_train.show.neutral import neutral_text
from remote_train.show.sources import list_mfu_lines
from remote_train.show.words import (
    DASH,
    get_number,
    measure_cells,
    render_bytes,
    render_loss,
    render_metric,
    render_peak,
    render_reported,
    render_seconds,
    render_time,
)

Row = Mapping[str, object]
Pair = tuple[str, str]  # label, value; the label is empty on the further lines of a value

_UNCUT = 1_000_000  # columns of the plain form: wider than any line
_STATE_STYLES = {"running": "green", "queued": "cyan", "failed": "red", "lost": "red", "stopped": "yellow"}
_RUN_HEADERS = ("RUN", "HOST", "STATE", "STEP", "LOSS", "MFU", "STARTED", "DURATION", "EXIT")
_LEAST_WANTED = (
    "STARTED",
    "EXIT",
    "LOSS",
    "DURATION",
    "STEP",
    "MFU",
    "SOURCE",
    "PIN",
    "TRANSPORT",
    "USER",
    "DEVICE",
)
_GAP = 2  # columns between columns


@dataclass(frozen=True)
class Look:
    """How a table is to look: `width` in columns counts on a terminal only, `colour` too."""

    width: int
    terminal: bool
    colour: bool


def render_runs(rows: Sequence[Row], look: Look) -> str:
    """Return `ps`: rows of run, host, state, step, steps, loss, mfu (fraction), started (epoch), duration, exit.

    A narrow terminal shows fewer columns; run and state are always there.
    """
    return render_table(_RUN_HEADERS, [_make_run_cells(row) for row in rows], look)


def _make_run_cells(row: Row) -> dict[str, str]:
    step, steps = show_value(row.get("step")), row.get("steps")
    return {
        "RUN": show_value(row.get("run")),
        "HOST": show_value(row.get("host")),
        "STATE": show_value(row.get("state")),
        "STEP": step if steps is None else f"{step}/{show_value(steps)}",
        "LOSS": _show_number(row, "loss", render_loss),
        "MFU": _show_number(row, "mfu", render_mfu_cell),
        "STARTED": _show_number(row, "started", render_time),
        "DURATION": _show_number(row, "duration", render_seconds),
        "EXIT": show_value(row.get("exit")),
    }


def render_run(run: Row, look: Look) -> str:
    """Return `show RUN` as labelled lines.

    Keys: run, project, host, state, exit, notes, pruned (when its files left the host), attempts (rows), from, script, package,
    commit, dirty, device, last (a metric record),
    mfu (records by source, and why), explanation, bottleneck, telemetry (HostUse), steps, eta, checkpoints (rows), paths (label to path), next (commands to type).
    """
    last = run.get("last")
    record: Row = last if isinstance(last, Mapping) else {}
    pairs = [
        *_list_values(run, ("run", "project", "host", "state", "exit", "notes")),
        *_list_pruned(run),
        *_label_lines("attempts", _render_attempts(_select_mappings(run.get("attempts")))),
        *_list_values(run, ("from", "script", "package")),
        *_list_commit(run),
        *_list_values(run, ("device",)),
        *_list_record(record, run),
        *_label_lines("mfu", list_mfu_lines(run.get("mfu"))),
        *_list_values(run, ("explanation", "bottleneck")),
        *_label_lines("load", _list_use(run.get("telemetry"))),
        *_label_lines("checkpoints", list_lines(run.get("checkpoints"))),
        *_list_paths(run.get("paths")),
        *_list_values(run, ("next",)),
    ]
    return _render(_make_grid(pairs), look)


def _list_use(use: object) -> list[str]:
    return list_use_lines(use) if isinstance(use, Mapping) else []


def _list_pruned(run: Row) -> list[Pair]:
    when = get_number(run, "pruned")
    if when is None:
        return []
    line = (
        f"from {show_value(run.get('host'))} on {render_time(when)}; its records and what was pulled are here"
    )
    return [("removed", line)]


def _render_attempts(rows: Sequence[Row]) -> list[str]:
    """Return a line for each attempt: its number, its host, since when, how it ended, what it went on from."""
    columns = [[show_value(row.get(key)) for row in rows] for key in ("attempt", "host")]
    columns.append([_show_number(row, "began", render_time) for row in rows])
    columns.append([_render_standing(row) for row in rows])
    columns.append([_render_origin(row) for row in rows])
    widths = [max(map(len, column), default=0) for column in columns]
    lines = zip(*columns, strict=True)
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _render_standing(row: Row) -> str:
    if row.get("pending"):
        return "does not count any more; the first contact stops it"
    words = show_value(row.get("state"))
    ended = row.get("exit")
    words = words if ended is None else f"{words}: {show_value(ended)}"
    if not row.get("superseded"):
        return words
    # Seen last before the fence; that it is over there the host has said since.
    return f"{words if row.get('state') in FINAL else 'over'}; does not count any more"


def _render_origin(row: Row) -> str:
    if row.get("attempt") == 1:
        return ""
    reason = row.get("reason")
    why = "" if reason in (None, "resume") else f": {show_value(reason)}"
    if row.get("checkpoint") is None:
        return f"began anew{why}"
    step = "" if row.get("step") is None else f", about step {show_value(row['step'])}"
    return f"from {show_value(row['checkpoint'])}{step}{why}"


def _list_commit(run: Row) -> list[Pair]:
    if run.get("commit") is None:
        return []
    dirty = ", with uncommitted changes" if run.get("dirty") else ""
    return [("commit", show_value(run["commit"]) + dirty)]


def _list_record(record: Row, run: Row) -> list[Pair]:
    if not record:
        return []
    steps, eta = get_number(run, "steps"), get_number(run, "eta")
    lines = {
        "peak": None if record.get("peak_flops") is None else render_peak(record),
        "last": render_metric(record, eta, steps=None if steps is None else int(steps)),
        "reported": render_reported(record),
    }
    return [(label, line) for label, line in lines.items() if line]


def _list_paths(paths: object) -> list[Pair]:
    if not isinstance(paths, Mapping):
        return []
    lines = [f"{show_value(label)}: {show_value(path)}" for label, path in paths.items() if path is not None]
    return _label_lines("paths", lines)


def render_checks(rows: Sequence[Row], look: Look) -> str:
    """Return `hosts check`: for each host what was found, step by step, then the verdict and the next step.

    Keys: host, address, reachable, login (text or bool), facts (what the host's agent reports), verdict, next, ok.
    """
    return "\n".join(_render_check(row, look) for row in rows)


def _render_check(row: Row, look: Look) -> str:
    facts = row.get("facts")
    pairs = [
        *_list_values(row, ("host", "address", "reachable", "login")),
        *(_list_facts(facts) if isinstance(facts, Mapping) else []),
        *_list_values(row, ("verdict", "warnings", "next")),
    ]
    return _render(_make_grid(pairs, verdict="green" if row.get("ok") else "red"), look)


def _list_facts(facts: Row) -> list[Pair]:
    python = facts.get("python")
    free = get_number(facts, "disk_free_bytes")
    return [
        *([("python", _render_python(python))] if isinstance(python, Mapping) else []),
        *_label_lines("gpus", [_render_gpu(gpu) for gpu in _select_mappings(facts.get("gpus"))]),
        *_list_values({"gpu error": facts.get("gpu_error")}, ("gpu error",)),
        *([] if free is None else [("disk", f"{render_bytes(free)} free")]),
    ]


def _render_python(python: Row) -> str:
    path, version, torch = (show_value(python.get(key)) for key in ("path", "version", "torch"))
    if python.get("error") is not None:
        return f"{path}: {show_value(python['error'])}"
    cuda = python.get("torch_cuda")
    built = "CPU only" if cuda is None else f"CUDA {show_value(cuda)}"
    return f"{path} {version}, " + ("no torch" if python.get("torch") is None else f"torch {torch} ({built})")


def _render_gpu(gpu: Row) -> str:
    used, total = get_number(gpu, "memory_used_bytes"), get_number(gpu, "memory_bytes")
    parts = [f"{show_value(gpu.get('index'))}: {show_value(gpu.get('name'))}"]
    parts += [] if total is None else [render_bytes(total)]
    parts += [] if used is None else [f"{render_bytes(used)} in use"]
    return ", ".join([*parts, _render_users(gpu)])


def _render_users(gpu: Row) -> str:
    """Name those for whom the card is busy, as the queue sees it."""
    users = find_users(dict(gpu))
    state = "in use by somebody who cannot be seen from there" if is_foreign_busy(dict(gpu)) else "free"
    return "used by " + ", ".join(map(_render_process, users)) if users else state


def _render_process(process: Row) -> str:
    held = get_number(process, "memory_bytes")
    return f"pid {show_value(process.get('pid'))}" + ("" if held is None else f" ({render_bytes(held)})")


def _select_mappings(value: object) -> list[Row]:
    items = value if isinstance(value, (list, tuple)) else []
    return [item for item in items if isinstance(item, Mapping)]


def _list_values(row: Row, keys: Iterable[str]) -> list[Pair]:
    """Return a pair for each key that has a value, a list one line for each of its items."""
    pairs: list[Pair] = []
    for key in keys:
        value = row.get(key)
        items = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        pairs += _label_lines(key, list(map(show_value, items)))
    return pairs


def _label_lines(label: str, lines: Sequence[str]) -> list[Pair]:
    return [("" if index else label, line) for index, line in enumerate(lines)]


def show_value(value: object) -> str:
    """Return a value as a cell shows it, neutralised."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show_value, value)) or DASH
    return neutral_text(str(value))


def _show_number(row: Row, key: str, render: Callable[[float], str]) -> str:
    value = get_number(row, key)
    return DASH if value is None else render(value)


def render_table(headers: Sequence[str], rows: Sequence[Mapping[str, str]], look: Look) -> str:
    """Return a table; what a terminal has no room for is left out, the least wanted first."""
    shown = _choose_columns(headers, rows, look.width) if look.terminal else list(headers)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for header in shown:
        # names are what people copy into the next command, so the first column is never cut
        whole = header == headers[0]
        table.add_column(header, no_wrap=True, min_width=_measure_column(header, rows) if whole else None)
    for row in rows:
        table.add_row(*(Text(row[header], style=_choose_style(header, row)) for header in shown))
    return _render(table, look)


def _choose_columns(headers: Sequence[str], rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Return the columns that fit: whole ones less the least wanted read better than all of them cut."""
    shown = list(headers)
    for header in _LEAST_WANTED:
        if sum(_measure_column(name, rows) + _GAP for name in shown) - _GAP <= width:
            break
        if header in shown:
            shown.remove(header)
    return shown


def _measure_column(header: str, rows: Sequence[Mapping[str, str]]) -> int:
    return max(len(header), *(measure_cells(row[header]) for row in rows), 0)


def _choose_style(header: str, row: Mapping[str, str]) -> str:
    return _STATE_STYLES.get(row[header], "") if header == "STATE" else ""


def _make_grid(pairs: Iterable[Pair], **styles: str) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in pairs:
        grid.add_row(Text(label), Text(value, style=styles.get(label, "")))
    return grid


def _render(content: RenderableType, look: Look) -> str:
    """Draw on a console that knows only the look, so that no variable of the environment has a say."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=max(look.width, 1) if look.terminal else _UNCUT,
        height=25,
        force_terminal=look.terminal,
        force_jupyter=False,
        color_system="standard" if look.colour and look.terminal else None,
        no_color=not look.colour,
        legacy_windows=False,
        highlight=False,
    )
    console.print(content)
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())
