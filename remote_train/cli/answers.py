"""Print what was asked for: tables for people, JSON for programs."""

from __future__ import annotations

import csv as csv_writer
import os
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.metrics.record import MetricRecord
from remote_train.show.jsonl import write_event
from remote_train.show.neutral import neutral_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from remote_train.preparing import Prepared
    from remote_train.show.tables import Look


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
    sys.stdout.write(render(value, _look()))


def show_runs(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `ps`."""
    from remote_train.show.tables import render_runs

    _print(render_runs, rows, "run", as_json=as_json)
    for row in rows:
        if row["trouble"] and not as_json:
            sys.stderr.write(f"remote-train: {row['run']}: as last seen; {neutral_text(row['trouble'])}\n")


def show_run(facts: dict[str, Any], *, as_json: bool) -> None:
    """Print `show RUN`."""
    from remote_train.show.tables import render_run

    _print(render_run, facts, "run", as_json=as_json)


def show_hosts(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `hosts list`."""
    from remote_train.show.tables import render_hosts

    _print(render_hosts, rows, "host", as_json=as_json)


def show_checks(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print `hosts check`."""
    from remote_train.show.tables import render_checks

    _print(render_checks, rows, "check", as_json=as_json)


def list_known_hosts(hosts_file: Path | None) -> list[dict[str, Any]]:
    """Return the rows of `hosts list`."""
    from remote_train.config.hosts_file import read_hosts
    from remote_train.config.ssh_aliases import read_aliases

    known = read_hosts(hosts_file)
    rows = [
        {
            "name": host.name,
            "address": list(host.address) or [host.name],
            "user": host.user,
            "device": host.device,
            "source": str(known.path),
            "default": host.name in known.default,
        }
        for host in known.hosts.values()
    ]
    aliases = [alias for alias in read_aliases(Path.home()) if alias not in known.hosts]
    rows += [
        {"name": alias, "address": [alias], "device": "cuda", "source": "~/.ssh/config"} for alias in aliases
    ]
    return [*rows, {"name": "local", "address": [], "device": "cpu", "source": "this machine"}]


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
            sys.stdout.write(f"{key:>12}  {neutral_text(_render(value))}\n")


def _render(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def print_metrics(records: Iterable[MetricRecord], *, csv: bool) -> int:
    """Print records as JSON lines or CSV, unknown is null, or empty; return how many there were."""
    count = 0
    if not csv:
        for count, record in enumerate(records, 1):  # noqa: B007  (the count is the answer)
            write_event(sys.stdout.buffer, "metric", record.as_json())
        return count
    names: Sequence[str] = [field.name for field in fields(MetricRecord)]
    writer = csv_writer.DictWriter(sys.stdout, names)
    writer.writeheader()
    for count, record in enumerate(records, 1):  # noqa: B007  (as above)
        writer.writerow({key: _neutral(value) for key, value in record.as_json().items()})
    return count


def _neutral(value: object) -> object:
    return neutral_text(value) if isinstance(value, str) else value
