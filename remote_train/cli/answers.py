"""Print what was asked for: tables for people, JSON for programs."""

from __future__ import annotations

import csv as csv_writer
import os
import shutil
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from remote_train.cli.options import name_hosts_file, say
from remote_train.metrics.record import MetricRecord
from remote_train.show.jsonl import write_event
from remote_train.show.neutral import neutral_text
from remote_train.show.screen import write_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remote_train.attempts import Hop
    from remote_train.preparing import Prepared
    from remote_train.show.tables import Look

LEAST_ROWS = 10
MOST_ROWS = 1000
"""Without a terminal; `--all` prints more."""
BESIDE = 4
"""Lines of a terminal that a table leaves: its head, and the prompt."""


def _look() -> Look:
    from remote_train.show.tables import Look

    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns
    return Look(width=width, terminal=terminal, colour=terminal and "NO_COLOR" not in os.environ)


def _print(render: Callable[[Any, Look], str], value: Any, kind: str, *, as_json: bool) -> None:  # noqa: ANN401
    if as_json:
        for row in value if isinstance(value, list) else [value]:
            write_event(sys.stdout.buffer, kind, row)
        return
    write_text(render(value, _look()))


def write_text(text: str) -> int:
    """Write to stdout, past Python's buffer: raises OutputClosed when nobody reads it any more."""
    write_all(sys.stdout.buffer, text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    return len(text)


class _Lines:
    """What csv's writer writes to."""

    write = staticmethod(write_text)


def show_runs(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `ps`."""
    from remote_train.show.tables import render_runs

    _print(render_runs, rows, "run", as_json=as_json)
    for row in rows:
        if row["trouble"] and not as_json:
            say(f"{row['run']}: as last seen; {name_hosts_file(row['trouble'])}")


def show_run(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print `show RUN`."""
    from remote_train.show.tables import render_run

    _print(render_run, facts, "run", as_json=as_json)


def show_explanation(found: dict[str, Any], *, as_json: bool) -> None:
    """Print `explain RUN`."""
    from remote_train.show.explanation import render_explanation

    if as_json:
        write_event(sys.stdout.buffer, "explanation", found)
    else:
        write_text(render_explanation(found))


def show_hosts(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `hosts list`."""
    from remote_train.show.host_lists import render_hosts

    _print(render_hosts, rows, "host", as_json=as_json)
    for row in rows:
        if row.get("trouble") and not as_json:
            say(f"{row['name']}: {row['trouble']}")


def show_checks(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `hosts check`."""
    from remote_train.show.tables import render_checks

    _print(render_checks, name_files(rows), "check", as_json=as_json)


def name_files(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the file in use in the commands of their next steps."""
    return [{**row, "next": name_hosts_file(row["next"])} for row in rows]


def show_imports(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `hosts import`."""
    from remote_train.show.host_lists import render_imports

    _print(render_imports, rows, "import", as_json=as_json)


def show_change(kind: str, row: dict[str, Any], words: str, *, as_json: bool) -> None:
    """Tell what was changed."""
    if as_json:
        write_event(sys.stdout.buffer, kind, row)
    else:
        say(words)


def show_plan(prepared: Prepared, *, as_json: bool) -> None:
    """Print what a run would do, and let go of the host."""
    prepared.reached.session.close()
    plan, package = prepared.plan.as_message(), prepared.package
    facts = {
        **plan,
        "files": len(package.rows),
        "bytes": package.total_bytes,
        "notes": list(prepared.plan.notes),
    }
    if as_json:
        write_event(sys.stdout.buffer, "plan", facts)
        return
    for key, value in facts.items():
        if value not in (None, [], {}, ""):
            write_text(f"{key:>12}  {neutral_text(_render(value))}\n")


def _render(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def print_metrics(records: Iterable[MetricRecord], hops: Iterable[Hop], *, csv: bool) -> int:
    """Print records as JSON lines or CSV, unknown is null, or empty; return how many there were.

    Before the first record of an attempt that went on from another there is a line `hop`; CSV has none.
    """
    count = 0
    if not csv:
        due = list(hops)
        for count, record in enumerate(records, 1):  # noqa: B007  (the count is the answer)
            _print_hops(due, record.attempt)
            write_event(sys.stdout.buffer, "metric", record.as_json())
        _print_hops(due, None)
        return count
    names: Sequence[str] = [field.name for field in fields(MetricRecord)]
    writer = csv_writer.DictWriter(_Lines(), names)
    writer.writeheader()
    for count, record in enumerate(records, 1):  # noqa: B007  (as above)
        writer.writerow({key: _neutral(value) for key, value in record.as_json().items()})
    return count


def print_table(records: Iterable[MetricRecord], *, everything: bool) -> int:
    """Print records as a table; on a terminal as many as it has room for, evenly thinned, or everything."""
    from remote_train.show.records import thin, write_table

    look, room = _look(), shutil.get_terminal_size().lines - BESIDE
    limit = max(LEAST_ROWS, room) if look.terminal else MOST_ROWS
    rows = records if everything else thin(records, limit)
    return write_table(
        (record.as_json() for record in rows), look.width if look.terminal else None, write_text
    )


def _print_hops(due: list[Hop], attempt: int | None) -> None:
    """Print the hops that led up to an attempt, all with None."""
    while due and (attempt is None or due[0].attempt <= attempt):
        write_event(sys.stdout.buffer, "hop", due.pop(0).as_json())


def _neutral(value: object) -> object:
    return neutral_text(value) if isinstance(value, str) else value
