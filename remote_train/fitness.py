"""What is said of a host that was reached, and whether the package fits: before anything is sent there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from remote_train.errors import HostSpace
from remote_train.preflight import find_warnings, render_verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.reach import HostLink, Reached


def describe_reached(link: HostLink, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told of a host that was reached: its name, a verdict in one line, and what it is to be warned of.

    Of what is remembered nothing is said that may be otherwise by now.
    """
    if link.is_local:
        return {"host": link.host.name}
    verdict = render_verdict(link.host.name, link.host.device, facts, fresh=link.looked is not None)
    warnings = find_warnings(link.host.name, facts, link.looked) if link.looked is not None else []
    return {"host": link.host.name, "verdict": verdict, "warnings": warnings}


def check_room(reached: Reached, need: int) -> None:
    """Raise HostSpace when a host has less room than the package takes; what is remembered is looked at again first."""
    link = reached.link
    if _is_free(reached.facts, need):
        return
    if link.looked is None:
        reached.facts = link.read_facts(reached.session, fresh=True)
        if _is_free(reached.facts, need):
            return
    have = reached.facts["disk_free_bytes"]
    raise HostSpace(
        f"{link.host.name}: the package has {need:,} bytes, and {have:,} are free where its runs are kept",
        hint="free space there: `remote-train gc`, or `state_dir` in hosts.toml on a larger disk",
        host=link.host.name,
        need=need,
        have=have,
    )


def _is_free(facts: Mapping[str, Any], need: int) -> bool:
    free = facts.get("disk_free_bytes")
    return not isinstance(free, int) or need <= free


_UV_HINTS = {
    "uv is not installed": 'there: `curl -LsSf https://astral.sh/uv/install.sh | sh`; or `uv = "ship"` in hosts.toml brings this laptop\'s own',
    "the environment that uv made": "`uv add torch` in the project: only what its lock names is installed",
    "uv is to build": "`uv init` and `uv add torch` in the project, or name a Python in hosts.toml",
    "none in PATH": "install uv on this laptop, or on the host and write `uv = true`",
    "` failed there": "`uv lock` and `uv sync` in the project tell whether that is the project's fault or the host's",
    "this laptop is for": "install uv there, and write `uv = true` for that host",
}
"""What to do by what was said of an environment that uv should build."""


def hint_environment(why: str) -> str | None:
    """Return what to do about an environment that uv could not build, None for anything else."""
    return next((hint for part, hint in _UV_HINTS.items() if part in why), None)


def _name_line(why: str) -> str:
    """Return the line of hosts.toml that mends an environment without torch."""
    found = re.search(r"torch was found in ([^,\n]+)", why)
    if found:
        return f'set `python = "{found.group(1)}"` for that host in hosts.toml'
    return 'set `python = "…"` or `conda = "…"` for that host in hosts.toml to one that has torch, or install it there'


def unfit_hint(unfit: Sequence[str]) -> str:
    """Return what to do about hosts that are unfit: the line of hosts.toml to type."""
    for why in unfit:
        hint = hint_environment(why)
        if hint is not None:
            return hint
    if any("no conda environment" in why for why in unfit):
        return "see `conda` in hosts.toml: the name of an environment there, or its folder"
    without = all("has no torch" in why or "does not work" in why for why in unfit)
    if without or any("torch was found" in why for why in unfit):
        return _name_line("\n".join(unfit))
    if any("is built for CUDA" in why or "is built without CUDA" in why for why in unfit):
        return 'name another environment in hosts.toml: `python = "…"` or `conda = "…"`'
    return 'a host without a GPU trains with `device = "cpu"` in hosts.toml; --local trains on this machine'
