"""Tables of hosts as they are configured: `hosts list`, `hosts import`. What is found there is in `tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remote_train.show.tables import render_table, show_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remote_train.show.tables import Look, Row

HOST_HEADERS = ("HOST", "ADDRESS", "USER", "JUMP", "TRANSPORT", "PIN", "DEVICE", "SOURCE", "DEFAULT")
SHORT_PIN = 15
IMPORT_HEADERS = ("HOST", "DONE", "WHY")


def render_hosts(rows: Sequence[Row], look: Look) -> str:
    """Return `hosts list`: name, address and jump (one or several), user, transport, pin, device, source, default."""
    return render_table(HOST_HEADERS, [_make_host_cells(row) for row in rows], look)


def _make_host_cells(row: Row) -> dict[str, str]:
    cells = {header: show_value(row.get(header.lower())) for header in HOST_HEADERS}
    if row.get("pin"):
        cells["PIN"] = f"{cells['PIN'][:SHORT_PIN]}…"
    return cells | {"HOST": show_value(row.get("name")), "DEFAULT": "yes" if row.get("default") else ""}


def render_imports(rows: Sequence[Row], look: Look) -> str:
    """Return `hosts import`: host, done, why."""
    cells = [{header: show_value(row.get(header.lower())) for header in IMPORT_HEADERS} for row in rows]
    return render_table(IMPORT_HEADERS, cells, look)
