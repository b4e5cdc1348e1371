"""From hosts to one live session: banners in parallel, logins in the order given, the first fit one wins.

What counts as unreachable, and what may lead to the local CPU, is DESIGN §8 to the letter: only hosts that gave
no SSH banner. One that is unfit or has no room is passed over; every other failure ends the command with its own exit code.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from remote_train.config.host_target import HostTarget, read_target
from remote_train.errors import ConnectionLost, HostSpace, HostUnfit, Unreachable
from remote_train.fencing import enforce, fences_of
from remote_train.fitness import name_found, unfit_hint
from remote_train.memory import HostMemory, host_memory
from remote_train.occupied import Occupied
from remote_train.preflight import find_unfit
from remote_train.session import Session, open_session
from remote_train.transport.dial import Dialling, Refused, limit_seconds
from remote_train.transport.keyholder import is_asked, leave_alone
from remote_train.transport.local import LocalTransport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from remote_train.bootstrap import Agent
    from remote_train.config.host_spec import HostSpec
    from remote_train.environments import Environment
    from remote_train.plan import Job
    from remote_train.transport import Ask, Notify, Transport
    from remote_train.transport.dial import Dialled

FACTS_SECONDS = 60.0


class HostLink:
    """A way to one host that can be opened again and again."""

    def __init__(self, host: HostSpec, agent: Agent, ask: Ask | None, pythons: Sequence[str]) -> None:
        self.host = host
        self.agent = agent
        self.pythons = list(pythons)
        self.memory: HostMemory = host_memory(host.name, host.state_dir)
        self.environment: Environment | None = None
        """What uv builds there, where hosts.toml says so and a project is known."""
        self.notify: Notify | None = None
        """Who is told what a person should know of the way there."""
        self.seen: dict[str, str] = {}
        """What the transport of the last connection has seen of the host, as far as it came (`doctor` tells it)."""
        self.looked: float | None = None
        """When what is known of it was looked at, by this machine's clock; None while that is remembered."""
        self._ask = ask
        self._told: set[str] = set()
        self._target: HostTarget | None = None
        self._dialling: Dialling | None = None

    @property
    def is_local(self) -> bool:
        """Tell whether the host is this machine."""
        return self.host.is_local

    def for_project(self, root: Path, script: str | None) -> HostLink:
        """Return itself, for a project and one of its scripts: uv may have to build what they need."""
        if self.host.uv:
            from remote_train.environments import Environment  # noqa: PLC0415 - only where it is used

            self.environment = Environment(root, self.host.uv, script, self.host.env)
        return self

    def unasked(self) -> HostLink:
        """Return another link to the same host, for what goes on behind a person's back."""
        link = HostLink(self.host, self.agent, leave_alone(self._ask), self.pythons)
        link.environment = self.environment
        return link

    def dial(self) -> None:
        """Begin to knock at every address, without waiting; raise ConfigError for an ssh_config we cannot honour."""
        if self.is_local or self._dialling is not None:
            return
        if self._target is None:
            self._target = read_target(self.host)
        # A command is started by the transport, when it is this host's turn; ssh dials what it goes through itself.
        nearest = self._target.nearest
        if not nearest.proxy_commands and not (self._target.need and self._target.is_proxied):
            self._dialling = Dialling(nearest, limit_seconds(nearest.connect_timeout))

    def peek(self) -> Dialled | Refused | None:
        """Return what dialling came to, and leave it to `connect`; None where no address of the host is dialled from here."""
        self.dial()
        return None if self._dialling is None else self._dialling.wait()

    @property
    def target(self) -> HostTarget | None:
        """What ssh_config made of the host; None before it was dialled, and for this machine."""
        return self._target

    def connect(self) -> Session:
        """Return a new session whose `open` is on its way; raise Unreachable or the error after the banner.

        What counts no more on this host has been told to stop by then (fencing.py).
        """
        if self.is_local:
            session = open_session(LocalTransport(), self.agent, sys.executable)
        else:
            session = self._connect_ssh()
        session.submit("open", state_dir=self.host.state_dir)
        if fences_of(self.host.name, self.host.state_dir).is_dir():
            self._enforce(session)
        return session

    def _enforce(self, session: Session) -> None:
        """Before anything else is done there, stop what counts no more."""
        try:
            enforce(session, self.host.name, self.host.state_dir)
        except BaseException:
            session.close()
            raise

    def _connect_ssh(self) -> Session:
        if self._dialling is None:
            self.dial()
        dialling, self._dialling = self._dialling, None
        target = self._target
        if target is None:
            raise Unreachable(f"{self.host.name}: not dialled")
        make = self._make_openssh if target.need else self._make_paramiko
        dialled = None
        if dialling is not None:
            outcome = dialling.wait()
            if isinstance(outcome, Refused):
                hop = f"{target.nearest.name}: " if target.jumps else ""
                reason = f"{hop}{outcome.reason}"
                raise Unreachable(f"{self.host.name}: {reason}", reason=reason)
            dialled = outcome
        transport = make(target, dialled)
        try:
            session = open_session(transport, self.agent, own_python(self.host))
        except ConnectionLost:  # perhaps behind a jump host that has asked somebody already
            self._ask = leave_alone(self._ask)
            raise
        finally:
            self.seen = getattr(transport, "seen", {})
        # A person is asked once in a command: who comes back at night would wait for an answer for ever.
        self._ask = leave_alone(self._ask)
        return session

    def _tell(self, text: str) -> None:
        if self.notify:
            self.notify(text)

    def _say(self, text: str) -> None:
        """Say it once: every connection finds the same."""
        if self.notify and text not in self._told:
            self._told.add(text)
            self.notify(text)

    def _make_paramiko(self, target: HostTarget, dialled: Dialled | None) -> Transport:
        # Imported here, while the sockets wait for their banners: it takes 150 ms.
        from remote_train.transport.paramiko_ssh import ParamikoTransport  # noqa: PLC0415

        return ParamikoTransport(target, dialled, ask=self._ask, pin=self.host.host_key, notify=self._say)

    def _make_openssh(self, target: HostTarget, dialled: Dialled | None) -> Transport:
        from remote_train.transport.openssh import OpensshTransport  # noqa: PLC0415 - only where it is used
        from remote_train.transport.openssh_command import Policy  # noqa: PLC0415 - as above

        if self.host.transport is None:
            self._say(f"{self.host.name}: ssh itself is used: {target.need}")
        policy = Policy(
            target.strict_host_key_checking,
            is_asked(self._ask),
            self.host.host_key,
            target.known_hosts_files,
            target.password,
        )
        return OpensshTransport(target, target.ways, policy, dialled=dialled, notify=self._say)

    def read_facts(self, session: Session, *, fresh: bool = False) -> dict[str, Any]:
        """Return what the host is like, as remembered from last time unless `fresh`."""
        environment, names = self.environment, self.pythons
        if environment is not None:
            names = environment.names
        facts = None if fresh or not names else self.memory.read_facts(names)
        if facts is None:
            pythons = self.pythons if environment is None else [environment.build(session, self._tell)]
            facts = session.wait(session.submit("facts", pythons=pythons), FACTS_SECONDS)
            self.looked = time.time()
            self.memory.write_facts(names, facts)
        return facts

    def read_fit_facts(self, session: Session) -> tuple[dict[str, Any], str | None]:
        """Return what the host is like, and why it cannot run a job of its device, None when it can.

        What is remembered is believed only while it says that it can: it may have been mended since.
        """
        facts = self.read_facts(session)
        if find_unfit(self.host, facts) is not None:
            facts = self.read_facts(session, fresh=True)
        return facts, find_unfit(self.host, facts)

    def close(self) -> None:
        """Let go of sockets that were dialled and not used."""
        if self._dialling is not None:
            self._dialling.close()
            self._dialling = None


@dataclass
class Reached:
    """A host that was reached and is fit, with the session it was reached by."""

    link: HostLink
    session: Session
    facts: dict[str, Any]
    reasons: list[str] = field(default_factory=list)
    """Why the hosts before it were passed over."""
    fell_back: bool = False
    """It is this machine, because none of the hosts asked for can be reached."""


def own_python(host: HostSpec) -> str | None:
    """Return the Python of a host that our program is to run on, None for its python3."""
    return f"{host.conda}/bin/python" if host.conda and "/" in host.conda else host.python


def candidate_pythons(host: HostSpec, project_root: Path) -> list[str]:
    """Return the interpreters to try for training, best first."""
    if not host.is_local:
        if host.conda:
            return [f"conda:{host.conda}"]
        return [host.python] if host.python else ["python3", "python"]
    places = [str(project_root / ".venv")]
    places += [os.environ[key] for key in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(key)]
    return list(dict.fromkeys([os.path.join(place, "bin", "python") for place in places] + [sys.executable]))  # noqa: PTH118


def reach_first(links: Sequence[HostLink], local: HostLink | None, job: Job | None = None) -> Reached:
    """Return the first host that is reached, fit and free; the local CPU when none is reachable and `local` is given.

    Of several hosts, one that has not the GPUs of the `job` is unfit. Where they are busy on all that the job asks for, it is
    the first of them, or HostBusy for `--on-busy next`; a single host is not asked, it says so at the start. Raises Unreachable,
    HostUnfit, HostSpace, UsageError for GPUs that no host could have, or what the first failed login says.
    """
    if not links and local is not None:
        return _reach_local(local, [])
    for link in links:
        link.dial()
    absent: list[str] = []
    unfit: list[HostUnfit | HostSpace] = []
    busy = Occupied(job if len(links) > 1 else None, unfit)
    try:
        for link in links:
            reached = _try(link, absent, unfit)
            if reached is not None and busy.takes(reached):
                return reached
    except BaseException:
        busy.close()
        raise
    finally:
        for link in links:
            link.close()
    if busy.found:
        return busy.choose([error.message for error in unfit] + absent)
    if unfit or local is None:
        raise _join_refusals(unfit, absent)
    return _reach_local(local, absent)


def _join_refusals(
    unfit: Sequence[HostUnfit | HostSpace], absent: Sequence[str], *, here: bool = False
) -> HostUnfit | HostSpace | Unreachable:
    """Return one error for hosts of which none will do: where all that were reached lack room, that is what it says.

    `here`: this machine was tried after them, and comes last.
    """
    said = [error.message for error in unfit]
    message = "\n".join([*absent, *said] if here else [*said, *absent])
    if not unfit:
        hint = None if here else "leave out --no-fallback to train on this machine's CPU"
        return Unreachable(message, hint=hint)
    faults = [error for error in unfit if isinstance(error, HostUnfit)]
    if not faults:
        return HostSpace(message, hint=unfit[0].hint, **unfit[0].facts)
    own = next((error.hint for error in faults if error.hint), None)
    return HostUnfit(message, hint=own or unfit_hint([error.message for error in faults], here=here))


def _try(link: HostLink, absent: list[str], unfit: list[HostUnfit | HostSpace]) -> Reached | None:
    try:
        session = link.connect()
    except Unreachable as error:
        absent.append(error.message)
        return None
    except (HostUnfit, HostSpace) as error:
        unfit.append(error)
        return None
    try:
        facts, why = link.read_fit_facts(session)
        if why is None:
            return Reached(link, session, facts, absent + [error.message for error in unfit])
        others = "" if link.host.uv else _name_others(session, facts)
        unfit.append(HostUnfit(f"{link.host.name}: {why}{others}"))
    except (HostUnfit, HostSpace) as error:  # uv could not build the environment
        unfit.append(error)
    except BaseException:
        session.close()
        raise
    session.close()
    return None


def _name_others(session: Session, facts: dict[str, Any]) -> str:
    """Return a half sentence about interpreters that do have torch, if any were found."""
    if facts["python"].get("torch"):
        return ""
    return name_found([str(item.get("path")) for item in session.request("search").get("pythons", [])])


def _reach_local(local: HostLink, reasons: list[str]) -> Reached:
    """Reach this machine, whatever it takes: an unfit local Python is exit 13 with both reasons."""
    absent: list[str] = []
    unfit: list[HostUnfit | HostSpace] = []
    reached = _try(local, absent, unfit)
    if reached is None:
        raise _join_refusals(unfit, [*reasons, *absent], here=True)
    reached.reasons, reached.fell_back = reasons, bool(reasons)
    return reached


def make_links(
    hosts: Sequence[HostSpec], agent: Agent, ask: Ask | None, project_root: Path, script: str | None = None
) -> list[HostLink]:
    """Return a link for each host, in order; `script`: the path in the project of the one that is to run."""
    return [
        HostLink(host, agent, ask, candidate_pythons(host, project_root)).for_project(project_root, script)
        for host in hosts
    ]
