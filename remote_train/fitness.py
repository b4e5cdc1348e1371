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
    warnings = find_warnings(link.host, facts, link.looked) if link.looked is not None else []
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
    "does not answer there now": "type it again in a while; where that does not help, remove that folder there: it is built anew",
    "under way, uses what is left": "wait for the end of that run, or `remote-train stop` it: then the environment is built anew; one of a machine that is gone counts for an hour",
    "this laptop is for": "install uv there, and write `uv = true` for that host",
}
"""What to do by what was said of an environment that uv should build."""


def hint_environment(why: str) -> str | None:
    """Return what to do about an environment that uv could not build, None for anything else."""
    return next((hint for part, hint in _UV_HINTS.items() if part in why), None)


def name_found(pythons: Sequence[str]) -> str:
    """Return a half sentence about interpreters that do have torch, if any were found."""
    return f"; torch was found in {', '.join(pythons[:3])}" if pythons else ""


def unfit_hint(unfit: Sequence[str], *, here: bool = False) -> str:
    """Return what to do about hosts that are unfit, by what was said of them: the line to type.

    `here`: it is this machine, which takes its Python from the project and from what is activated.
    """
    for why in unfit:
        hint = hint_environment(why)
        if hint is not None:
            return hint
    said = "\n".join(unfit)
    if "no conda environment" in said:
        return "see `conda` in hosts.toml: the name of an environment there, or its folder"
    without = all("has no torch" in why or "does not work" in why for why in unfit)
    if without or "torch was found" in said:
        return _name_line(said, here=here)
    return next((hint for part, hint in _CUDA_HINTS.items() if part in said), _ON_CPU)


_ON_CPU = 'a host without a GPU trains with `device = "cpu"` in hosts.toml; --local trains on this machine'
_OTHER = 'name another environment in hosts.toml: `python = "…"` or `conda = "…"`'
_CUDA_HINTS = {
    "is built for CUDA": f"update the driver, or {_OTHER}, with a torch for the CUDA that it runs",
    "is built without CUDA": f"{_OTHER}, with a torch that is built for CUDA",
    "version mismatch": "restart that machine: its driver was updated",
    "; on the bus: ": "install or load NVIDIA's driver there, until `nvidia-smi` lists the GPU",
}
"""What to do by what was said of a host's torch, driver and GPUs."""


def _name_line(said: str, *, here: bool) -> str:
    """Return the line that mends an environment without torch."""
    bare = re.search(r": ([^\n]+) \(Python [^)\n]*\) has no torch", said)
    install = f"`{bare.group(1)} -m pip install torch`" if bare else "an environment with torch"
    if here:
        return f"install torch here: {install}, or activate an environment that has it"
    found = re.search(r"torch was found in ([^,\n]+)", said)
    if found:
        return (
            f'set `python = "{found.group(1)}"` for that host in hosts.toml, in place of a `venv` or `conda`'
        )
    mend = 'set `python = "…"` or `conda = "…"` for that host in hosts.toml to one that has torch'
    return f"install torch there: {install}, or {mend}" if bare else mend
