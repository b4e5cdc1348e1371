"""`doctor HOST`: what stands between this laptop and a training there, step by step, and one sentence at the end.

A step that fails is the last one; the exit code is the one that `run` would give. Nothing is changed on the host.
"""

from __future__ import annotations

import os
import re
import socket
import statistics
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from remote_train.errors import (
    ConnectionLost,
    HostKeyRefused,
    HostSpace,
    HostUnfit,
    LoginRefused,
    RemoteTrainError,
    Unreachable,
    exit_code_of,
)
from remote_train.findings import Chart, judge, list_facts, list_surroundings, render_rate
from remote_train.fitness import name_found, unfit_hint
from remote_train.host.examining import find_rate
from remote_train.inbox import Data, End
from remote_train.preflight import find_unfit
from remote_train.transport.dial import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from remote_train.config.host_spec import HostSpec
    from remote_train.reach import HostLink
    from remote_train.session import Session

RESOLVE_SECONDS = 5.0
ROUNDS = 9
BURST_SECONDS = 2.0
BURST_BYTES = 64 << 20
LEAST_UP = 32 << 10
"""Bytes that are sent up over the slowest link: they leave at once, and a modem takes seconds for them."""
PIECE = 64 << 10
_OPENSSH = re.compile(r"^SSH-2\.0-OpenSSH_(\d+)\.(\d+)")
_PATCHED = (
    (re.compile(r"9\.2p1 Debian-2\+deb12u(\d+)"), 3),
    (re.compile(r"8\.9p1 Ubuntu-3ubuntu0\.(\d+)"), 10),
    (re.compile(r"9\.6p1 Ubuntu-3ubuntu13\.(\d+)"), 3),
)
"""Versions of distributions from which on CVE-2024-6387 is mended: Debian DSA-5724-1, Ubuntu USN-6859-1."""


def examine_host(link: HostLink, *, speed: bool = True) -> dict[str, Any]:
    """Return `host`, `steps`, `verdict`, `next`, `ok`, `exit_code`, and the host's `facts` as far as they are known.

    `speed` False leaves the seconds out in which the link is filled.
    """
    chart = Chart(link.host.name)
    session = None
    try:
        if not link.is_local:
            _dial(link, chart)
        session = _log_in(link, chart)
        _look(link, session, chart)
        if not link.is_local:
            _measure(session, chart, speed=speed)
    except (RemoteTrainError, ConnectionLost) as error:
        return _end_early(chart, error)
    finally:
        link.close()
        if session is not None:
            session.close()
    return _end(link, chart)


def _dial(link: HostLink, chart: Chart) -> None:
    """Resolve every address, and see over which an SSH server answers."""
    chart.step("ssh_config")
    link.dial()
    target = link.target
    if target is None:
        return
    chart.ok(f"{target.user} at {', '.join(target.addresses)} port {target.port}")
    if target.is_proxied:
        chart.ok("through other hosts, which resolve its name and reach it")
        return
    chart.step("address")
    for address, (found, why, seconds) in resolve(target.addresses, target.port).items():
        if found:
            chart.ok(f"{address}: {', '.join(found)} ({seconds * 1000:.0f} ms)")
        else:
            chart.warn(f"{address}: {why}")
    chart.step("connect")
    began = time.monotonic()
    outcome = link.peek()
    if isinstance(outcome, Refused):
        raise Unreachable(f"{link.host.name}: {outcome.reason}", hint=hint_unreachable(outcome.reason))
    if outcome is None:
        chart.ok("not dialled from here: another host, or ssh itself, leads there")
        return
    chart.ok(f"{outcome.address} answered within {time.monotonic() - began:.2f} s: {outcome.banner[:80]}")
    note = judge_banner(outcome.banner)
    if note:
        chart.warn(note)


def resolve(addresses: Sequence[str], port: int) -> dict[str, tuple[list[str], str, float]]:
    """Return for each address what it resolves to, or why not, and the seconds that took; 5 s for all of them."""
    late = f"name not resolved within {RESOLVE_SECONDS:g} s"
    answers: dict[str, tuple[list[str], str, float]] = dict.fromkeys(addresses, ([], late, 0.0))

    def ask(address: str) -> None:
        began = time.monotonic()
        places: list[str] = []
        why = ""
        try:
            infos = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
            places = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except (OSError, UnicodeError) as error:
            why = f"name not resolved ({getattr(error, 'strerror', None) or error})"
        answers[address] = (places, why, time.monotonic() - began)

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + RESOLVE_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(answers)


def hint_unreachable(reason: str) -> str:
    """Return what to try for a host that does not answer."""
    if "name not resolved" in reason:
        return "is the name right? `hosts.toml` or ~/.ssh/config may give it another address"
    if "refused" in reason:
        return (
            "the machine is on and no SSH server listens there: `sudo systemctl start ssh`, or another port"
        )
    return "is it on, and in this network (VPN, tailnet)? a firewall may drop the connection"


def judge_banner(banner: str) -> str | None:
    """Return what is known against the server's version; distributions patch without a new number.

    CVE-2024-6387: OpenSSH 8.5p1 to 9.7p1 on glibc Linux (openssh.com/releasenotes.html, 9.8).
    """
    for pattern, first in _PATCHED:
        patched = pattern.search(banner)
        if patched and int(patched[1]) >= first:
            return None
    match = _OPENSSH.match(banner)
    if match is None:
        return None
    version = (int(match[1]), int(match[2]))
    if (8, 5) <= version < (9, 8):
        return (
            "OpenSSH 8.5 to 9.7 has CVE-2024-6387 unless its distribution has patched it: is it up to date?"
        )
    if version < (7, 4):
        return "this OpenSSH is from before 2016: update it"
    return None


def _log_in(link: HostLink, chart: Chart) -> Session:
    """Connect, and say of host key, login and shell how far that came."""
    chart.step("agent" if link.is_local else "login")
    link.notify = partial(_note_way, chart)
    began = time.monotonic()
    try:
        session = link.connect()
    except HostKeyRefused:
        chart.step("host key")
        raise
    except LoginRefused:
        _note_key(link, chart)
        chart.step("login")
        raise
    except (HostUnfit, HostSpace):
        _note_login(link, chart)
        chart.step("shell")
        raise
    seconds = time.monotonic() - began
    _note_login(link, chart, seconds)
    chart.step("agent")
    chart.ok(f"our program runs there ({seconds:.2f} s)" if link.is_local else "our program runs there")
    return session


def _note_way(chart: Chart, notice: str) -> None:
    """Take what the way there has to say, before the login is through."""
    chart.step("note")
    chart.ok(notice)
    chart.step("login")


def _note_key(link: HostLink, chart: Chart) -> None:
    if link.seen.get("host_key"):
        chart.step("host key")
        chart.ok(f"{link.seen['host_key']}: the one that is known")


def _note_login(link: HostLink, chart: Chart, seconds: float | None = None) -> None:
    _note_key(link, chart)
    if link.is_local:
        return
    chart.step("login")
    by = f"by {link.seen['login']}" if link.seen.get("login") else "done"
    chart.ok(by if seconds is None else f"{by}, in {seconds:.2f} s with the start of our program")


def _look(link: HostLink, session: Session, chart: Chart) -> None:
    """Ask for facts and surroundings."""
    chart.step("facts")
    link.notify = None  # what uv says while it builds is no step
    facts = chart.facts = link.read_facts(session, fresh=True)
    pids = sorted({int(row["pid"]) for gpu in facts["gpus"] for row in gpu.get("processes") or []})[:256]
    around = session.request("examine", pids=pids)
    if not facts["python"].get("torch"):
        chart.others = [str(row["path"]) for row in session.request("search").get("pythons", [])][:3]
    chart.drop("facts")
    list_surroundings(chart, facts, around, session.noise, local=link.is_local)
    list_facts(chart, facts, around, link.host)


def _measure(session: Session, chart: Chart, *, speed: bool) -> None:
    """Measure clock, round trip and bandwidth on the connection that stands."""
    trips, offset = read_clock(session)
    chart.step("clock")
    best = min(trips)
    about = (
        f"{abs(offset):.2f} s {'ahead of' if offset > 0 else 'behind'} this machine's (± {best / 2:.3f} s)"
    )
    if abs(offset) > 2.0 + best:
        chart.warn(f"{about}: certificates and file times suffer; set the time there by NTP")
    else:
        chart.ok(about if abs(offset) > best else "the same as this machine's")
    chart.step("link")
    chart.ok(f"round trip {statistics.median(trips) * 1000:.1f} ms (median of {len(trips)})")
    chart.numbers["round_trip"] = statistics.median(trips)
    chart.numbers["clock_offset"] = offset
    if speed:
        down = measure_down(session)
        up = measure_up(session, down)
        chart.numbers.update(down=down, up=up)
        chart.ok(f"down {render_rate(down)}, up {render_rate(up)}")


def read_clock(session: Session) -> tuple[list[float], float]:
    """Return round trips in seconds, and how far the host's clock is ahead, by the shortest of them."""
    seen = []
    for _ in range(ROUNDS):
        began, wall = time.monotonic(), time.time()
        told = float(session.request("clock")["time"])
        trip = time.monotonic() - began
        seen.append((trip, told - (wall + trip / 2)))
    return [trip for trip, _ in seen], min(seen)[1]


def measure_down(session: Session) -> float | None:
    """Return bytes/s from the host; fills the link for two seconds at most."""
    stream = session.new_stream()
    inbox = session.open_inbox(stream)
    marks, count = [], 0
    session.request("burst", stream=stream, seconds=BURST_SECONDS, bytes=BURST_BYTES)
    deadline = time.monotonic() + 10 * BURST_SECONDS
    try:
        while time.monotonic() < deadline:
            item = inbox.next_item(1.0)
            if isinstance(item, End):
                break
            if isinstance(item, Data):
                count += len(item.payload)
                marks.append((time.monotonic(), count))
    finally:
        inbox.close()
    return find_rate(marks)


def measure_up(session: Session, down: float | None) -> float | None:
    """Return bytes/s to the host: as many bytes as came down in two seconds at most, since many links are slower upwards."""
    budget = int(min(max(LEAST_UP, (down or 0.0) * BURST_SECONDS / 4), BURST_BYTES))
    stream = session.new_stream()
    asked = session.submit("sink", stream=stream)
    session.upload(stream, make_pieces(budget, time.monotonic() + BURST_SECONDS))
    rate = session.wait(asked).get("rate")
    return None if rate is None else float(rate)


def make_pieces(budget: int, until: float) -> Iterator[bytes]:
    """Yield so many bytes, or fewer when the time is over."""
    block = os.urandom(PIECE)
    while budget > 0 and time.monotonic() < until:
        yield block[:budget]
        budget -= len(block)


def _end_early(chart: Chart, error: RemoteTrainError | ConnectionLost) -> dict[str, Any]:
    known = error if isinstance(error, RemoteTrainError) else None
    message = known.message if known else str(error)
    chart.fail(message)
    hint = (
        known.hint if known else "run it again; if it stays so, the link or the host's SSH server breaks off"
    )
    first = message.splitlines()[0]
    verdict = first if first.startswith(chart.host) else f"{chart.host}: {first}"
    return chart.as_row(verdict=verdict, next=hint, exit_code=exit_code_of(error))


def _end(link: HostLink, chart: Chart) -> dict[str, Any]:
    why = find_unfit(link.host, chart.facts)
    following = choose_next(link.host, why, chart.others)
    return chart.as_row(
        verdict=judge(link.host, chart.facts, why),
        next=following,
        exit_code=HostUnfit.exit_code if why else 0,
    )


def choose_next(host: HostSpec, why: str | None, others: Sequence[str]) -> str:
    """Return the command for a host that is ready, or what to do about `why` it cannot train; `others`: Pythons there with torch."""
    if why is None:
        return f"remote-train run {'--local' if host.is_local else f'--host {host.name}'} SCRIPT"
    found = "" if host.uv or host.is_local or "has no torch" not in why else name_found(others)
    return unfit_hint([f"{host.name}: {why}{found}"], here=host.is_local)
