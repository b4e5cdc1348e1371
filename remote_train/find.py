"""From RUN, as typed, to the run's record here and a way to its host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_train.attempts import newest_of, place_of, places_of
from remote_train.bootstrap import read_agent
from remote_train.config.addresses import looks_like_address
from remote_train.config.hostnames import choose_host
from remote_train.config.hosts_file import read_hosts
from remote_train.config.project import find_project
from remote_train.config.ssh_aliases import read_aliases
from remote_train.consent import hide_known
from remote_train.errors import ConnectionLost, PackageError, UsageError
from remote_train.host import layout
from remote_train.plan import name_script
from remote_train.reach import HostLink, candidate_pythons
from remote_train.records import Run, client_root, create_run, find_run, is_ours

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.transport import Ask

TRIES = 3


def current_project() -> Path | None:
    """Return the root of the project around the current folder, None where there is none."""
    try:
        return find_project(Path.cwd(), Path.home()).root
    except PackageError:
        return None


def make_link(
    name: str,
    state_dir: str | None,
    hosts_file: Path | None,
    ask: Ask | None,
    root: Path,
    script: str | None = None,
) -> HostLink:
    """Return a way to a host by its name; raise UsageError when the name means nothing any more."""
    host = choose_host(name, read_hosts(hosts_file), read_aliases(Path.home()))
    if state_dir is not None and host.state_dir is None:
        host = type(host)(**{**vars(host), "state_dir": state_dir})
    return HostLink(host, read_agent(), ask, candidate_pythons(host, root)).for_project(root, script)


def find(
    text: str | None, hosts_file: Path | None, ask: Ask | None, attempt: int | None = None
) -> tuple[Run, HostLink]:
    """Return the run and the way to the host of an attempt, the newest by default; see `find_run_of`."""
    run = find_run_of(text, hosts_file, ask)
    return run, link_of(run, hosts_file, ask, attempt)


def find_run_of(text: str | None, hosts_file: Path | None, ask: Ask | None) -> Run:
    """Return the run that is meant; HOST:ID also finds runs of other laptops, HOST may be that of any of its attempts."""
    if text is None or ":" not in text:
        return find_run(text, current_project())
    name, _, run_id = text.rpartition(":")
    known = find_known(run_id)
    if known is not None and name in [host for host, _ in places_of(known.read())]:
        return known
    return adopt(make_link(name, None, hosts_file, ask, Path.cwd()), run_id)[0]


def find_known(run_id: str) -> Run | None:
    """Return the run of exactly this id if this laptop has a record of it."""
    try:
        run = find_run(run_id, None)
    except UsageError:
        return None
    return run if run.id == run_id else None


def link_of(run: Run, hosts_file: Path | None, ask: Ask | None, attempt: int | None = None) -> HostLink:
    """Return the way to the host of an attempt, the newest by default."""
    record = run.read()
    host, state_dir = place_of(record, attempt or newest_of(record))
    refuse_strange_hosts(run, [host])
    hide_known(run)
    return make_link(host, state_dir, hosts_file, ask, Path(record["root"]), script_of(record))


def script_of(record: dict[str, Any]) -> str | None:
    """Return the script of a run as a path of its project, None where that is not known."""
    job = record.get("job")
    if not isinstance(job, dict):
        return None
    return name_script(job["script"], job["module"], job["spec"].get("script"), job["cwd"])


def read_hosts_file(run: Run) -> Path | None:
    """Return the hosts.toml that the run was started with, None for the user's own; a stranger's record names none."""
    path = (run.read().get("job") or {}).get("hosts_file") if is_ours(run) else None
    return Path(path) if path else None


def refuse_strange_hosts(run: Run, names: Iterable[object]) -> None:
    """Raise UsageError where a record that this laptop did not make names a place by an address, or another project.

    It may have come with a stranger's project, which must not lead us anywhere: by their names in hosts.toml and
    ~/.ssh/config a user's own hosts are meant.
    """
    if is_ours(run):
        return
    hint = f"if it is yours, `remote-train show HOST:{run.id}` with the HOST it was on"
    strange = [str(name) for name in names if looks_like_address(str(name))]
    if strange:
        raise UsageError(
            f"the record of {run.id} was not made on this machine and names {strange[0]}", hint=hint
        )
    if run.read().get("root") not in (str(run.folder.parent.parent), None):
        raise UsageError(
            f"the record of {run.id} was not made here, and is of a project in another folder", hint=hint
        )


def _ask_state(link: HostLink, run_id: str) -> dict[str, Any]:
    """Return what a host says of a run; a connection that is lost over it is made anew."""
    for left in reversed(range(TRIES)):
        session = None
        try:
            session = link.connect()
            return session.request("state", run=run_id)
        except ConnectionLost:
            if not left:
                raise
        finally:
            if session is not None:
                session.close()
    raise AssertionError("the last try returns or raises")


def adopt(link: HostLink, run_id: str) -> tuple[Run, HostLink]:
    """Make a record here of a run that another laptop started; raise UsageError when the host has none such."""
    state = _ask_state(link, run_id) if layout.is_run_id(run_id) else {}
    attempt = state.get("attempt")
    if not attempt:
        raise UsageError(
            f"{link.host.name} has no run named {run_id}",
            hint="`remote-train ps -a` lists the runs that this laptop knows",
        )
    plan = attempt["plan"]
    home = client_root() / "adopted"
    record = {
        "project": plan.get("project"),
        "root": str(home),
        "host": link.host.name,
        "state_dir": link.host.state_dir,
        "created": attempt.get("started"),
        "package": plan.get("package"),
        "state": state["state"],
        "exit": state.get("exit"),
        "attempts": [
            {"attempt": number, "host": link.host.name, "plan": plan} for number in state["attempts"]
        ],
    }
    run = create_run(home, run_id, record)
    for number in state["attempts"]:
        run.attempt(number).prepare()
    return run, link
