"""What `gc` did or would do at each host, as lines of text. Pure; names and reasons come from hosts and are made neutral."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from remote_train.show.neutral import neutral_text
from remote_train.show.words import render_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY = 24 * 3600.0
_WORDS = {
    "starts": "starts that never began",
    "envs": "environments of uv out of use",
    "incoming": "uploads that were broken off",
    "leftovers": "half-written files",
    "packages": "manifests out of use",
    "blobs": "file contents out of use",
    "agents": "programs of older versions",
    "trash": "trash that was left",
}


def render_kept(row: Mapping[str, Any]) -> str:
    """Return one host's part: what went, what stays and why, and the totals before and after."""
    host = neutral_text(str(row["host"]))
    if row["trouble"]:
        return f"{host}: {neutral_text(str(row['trouble']))}\n"
    lines = [_render_head(host, row)]
    lines += [_render_run(run, dry=row["dry_run"]) for run in row["runs"]]
    lines += [_render_data(data, dry=row["dry_run"]) for data in row["data"]]
    lines += [_render_persist(kept, dry=row["dry_run"]) for kept in row["persist"]]
    freed = [(_WORDS[kind], size) for kind, size in row["freed"].items() if kind in _WORDS]
    verb = "would remove" if row["dry_run"] else "removed"
    lines += [f"  {verb} {words}, {render_bytes(size)}" for words, size in freed]
    return "".join(f"{line}\n" for line in lines)


def _render_head(host: str, row: Mapping[str, Any]) -> str:
    before, after = row["before"], row["after"]
    if before is None or after is None:
        return f"{host}:"
    total = sum(row["freed"].values())
    if row["dry_run"]:
        return f"{host}: keeps {render_bytes(before)}, {render_bytes(total)} would be freed"
    return f"{host}: kept {render_bytes(before)}, keeps {render_bytes(after)}"


def _render_data(data: Mapping[str, Any], *, dry: bool) -> str:
    places = ", ".join(neutral_text(str(place)) for place in data["places"]) or "of no run that is left there"
    name = f"data {data['id'][:12]} ({places}), {render_bytes(data['bytes'])}"
    if data["removed"]:
        return f"  {'would remove' if dry else 'removed'} {name}"
    why = "in use" if data["used"] else f"unused for {data['unused'] / DAY:.0f} days"
    hint = "" if data["used"] else ": `remote-train gc --data`"
    return f"  {name} stays, {why}{hint}"


def _render_persist(kept: Mapping[str, Any], *, dry: bool) -> str:
    name = f"what {neutral_text(str(kept['project']))} persists, {render_bytes(kept['bytes'])}"
    if kept["removed"]:
        return f"  {'would remove' if dry else 'removed'} {name}"
    why = ", in use" if kept["used"] else ": `remote-train gc --persist` in that project removes it"
    return f"  {name} stays{why}"


def _render_run(run: Mapping[str, Any], *, dry: bool) -> str:
    name, size = run["run"], render_bytes(run["bytes"])
    if run["removed"]:
        count = run["unpulled"]
        others = f", with {count} file{'s' * (count != 1)} that {'was' if count == 1 else 'were'} not pulled"
        return f"  {'would remove' if dry else 'removed'} {name}, {size}{others if count else ''}"
    if run["gone"]:
        return f"  {name} is not there any more"
    why = neutral_text(str(run["why"]))
    if run["kind"] == "checkpoint":
        why = f"{why} is not at home"
    hint = f": `{run['hint']}`" if run["hint"] else ""
    return f"  {name} stays, {size}; {why}{hint}"
