"""What ssh's own log (LogLevel DEBUG1) says of a connection, and which of our errors that is.

The log is ssh's alone: what the host and jump hosts say comes by stderr. Where it does not say clearly what happened,
the connection was lost: neither a fallback nor an exit code is ever guessed.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_train.errors import (
    ConfigError,
    ConnectionLost,
    HostUnfit,
    LoginRefused,
    Unreachable,
)
from remote_train.transport import login
from remote_train.transport.openssh_refusal import WORDS, explain_key, find_line, last_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from remote_train.transport.login import HostIdentity

LOGGED_IN = re.compile(
    r"Authenticated to |debug1: Authentication succeeded|debug1: mux_client_request_session: master session id"
)
LOGGED_IN_BY = re.compile(r'Authenticated to .* using "([a-z-]{1,40})"')
SHARED = re.compile(r"debug1: mux_client_request_session: ")
ENDED = re.compile(r"debug1: client_input_channel_req: channel \d+ rtype exit-(status|signal) ")
MAY_ASK = re.compile(
    r"debug1: (Server host (key|certificate)|Next authentication method|Server accepts key|Trying private key): "
)
"""From here on ssh may wait for a person: about the key, for a code or a passphrase, for a touch."""
WENT_ON = re.compile(
    r"debug1: (rekey out after|SSH2_MSG_NEWKEYS sent|Offering public key: |Authentications that can continue: )"
)
BANNER = re.compile(r"debug1: Remote protocol version ")
KEY = re.compile(r"debug1: Server host (?:key|certificate): (\S+) (SHA256:[A-Za-z0-9+/]{43})")
METHODS = re.compile(r"debug1: Authentications that can continue: (\S+)")
OFFERED = re.compile(
    r"debug1: Offering public key: (?P<what>.+) (?P<kind>\S+) SHA256:\S+(?P<source>( \w+)*)$"
)
ACCEPTED = re.compile(r"debug1: Server accepts key: ")
PASSED = re.compile(r'Authenticated (?:using "([a-z-]{1,40})" )?with partial success')
ASKED = re.compile(r"debug1: Next authentication method: (keyboard-interactive|password)$")
TOO_OPEN = re.compile(r"Permissions 0\d+ for '(.+)' are too open")
"""ssh says this of a key file in its own log only."""
NO_WAY_IN = re.compile(r"Permission denied( \([^)]*\))?\.?$|Too many authentication failures")
BAD_OPTION = re.compile(
    r"Bad configuration option|bad configuration options|Bad owner or permissions on|Bad SSH2? |"
    r"unsupported option|line \d+: |garbage at end of line|Can't open user config file"
)
UNREACHABLE = re.compile(
    r"(Connection (refused|timed out)|Operation timed out|Network is unreachable|No route to host|Host is down|"
    r"Could not resolve hostname|connect failed|Name or service not known|Connection timed out during banner exchange)"
)
NO_COMMAND = re.compile(r"(exec|shell) request failed on channel|channel \d+: open failed: ")
FORBIDDEN = re.compile(r"open failed: administratively prohibited")
CLOSED_EARLY = re.compile(
    r"kex_exchange_identification: |Connection (closed|reset) by|ssh_exchange_identification: |banner exchange: .*Broken pipe"
)
NOT_BEHIND = re.compile(r"open failed: connect failed")
FORBIDDEN_HINT = "its sshd forbids it (AllowTcpForwarding, PermitOpen); ask whoever runs it"
STEPS = {"shared": SHARED, "banner": BANNER, "logged_in": LOGGED_IN, "ended": ENDED, "accepted": ACCEPTED}


@dataclass(frozen=True)
class Story:
    """How far a connection came, in the order of time, and the words that were no debug lines."""

    banner: bool = False
    key: str = ""
    """Type and fingerprint of the key that the host offered."""
    logged_in: bool = False
    by: str = ""
    """The method that did it."""
    shared: bool = False
    """Over a connection of the user's that stood already; whose key it is was seen then."""
    ended: bool = False
    """The host said how the command ended."""
    accepted: bool = False
    """A key of ours is right, whether or not it could be used then."""
    methods: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    """Our keys, and the methods by which a person was asked."""
    passed: tuple[str, ...] = ()
    """What was right, but not enough alone."""
    words: tuple[str, ...] = ()


def parse_story(lines: Iterable[str]) -> Story:
    """Parse ssh's log."""
    key, by, methods, offered, words = "", "", (), [], []
    passed: list[str] = []
    seen: set[str] = set()
    for line in lines:
        seen.update(name for name, pattern in STEPS.items() if pattern.match(line))
        if found := KEY.match(line):
            key = f"{found[1]} {found[2]}"
        elif found := LOGGED_IN_BY.match(line):
            by = found[1]
        elif found := METHODS.match(line):
            methods = tuple(found[1].split(","))
        elif found := OFFERED.match(line):
            offered.append(f"{found['what']} ({found['kind']}{found['source'].replace(' explicit', '')})")
        elif found := ASKED.match(line):
            offered += [found[1]] if found[1] not in offered else []
        elif found := PASSED.match(line):
            passed += offered[-1:] if found[1] in {None, "publickey"} else [found[1]]
        elif not line.startswith("debug1: ") and line.strip("@ \r\n"):
            words.append(line.strip())
    steps = {name: name in seen for name in STEPS}
    return Story(
        key=key,
        by=by,
        methods=methods,
        offered=tuple(offered),
        passed=tuple(passed),
        words=tuple(words),
        **steps,
    )


def describe_way(story: Story) -> dict[str, str]:
    """Return what `doctor` says of host key and login, as far as it came."""
    by = "a connection of ssh's that stands already" if story.shared else story.by
    return {key: value for key, value in (("host_key", story.key), ("login", by)) if value}


@dataclass(frozen=True)
class Failure:
    """An ssh that ended by itself before, or instead of, its command's end."""

    identity: HostIdentity
    address: str
    story: Story
    others: tuple[str, ...] = ()
    """What came by stderr: before the host's key was seen, that is a jump host's ssh or a proxy command."""
    dialled: bool = False
    """We have seen the host's banner ourselves."""
    hops: tuple[tuple[HostIdentity, str], ...] = ()
    """The hosts on the way and the address of each that it leads by, the nearest first."""

    @property
    def words(self) -> tuple[str, ...]:
        """Everything that may explain it: ssh's own words, and those on the way to the host."""
        return self.story.words if self.story.key else (*self.others, *self.story.words)


def explain(failure: Failure) -> Exception:
    """Return which of our errors it is."""
    story, name = failure.story, failure.identity.target.name
    if story.logged_in:
        return _explain_session(failure)
    if (bad := find_line(BAD_OPTION, failure.words)) and not story.banner:
        return ConfigError([f"ssh_config: host {name}: {bad}"], hint=_hint_option(bad))
    for explained in (explain_key, _explain_login, _explain_way, _explain_absence):
        if (error := explained(failure)) is not None:
            return error
    return ConnectionLost(f"{name}: {last_line(failure.words) or 'ssh ended without a word'}")


def _explain_session(failure: Failure) -> Exception:
    name = failure.identity.target.name
    if said := find_line(NO_COMMAND, failure.story.words):
        return HostUnfit(
            f"{name} lets us in, but refuses to run a command: {said}",
            hint="check its ForceCommand and shell",
        )
    return ConnectionLost(f"{name}: {last_line(failure.story.words) or 'the connection broke off'}")


def _explain_login(failure: Failure) -> Exception | None:
    story, target = failure.story, failure.identity.target
    said = find_line(NO_WAY_IN, failure.words)
    if said is None:
        return None
    if not story.key:
        return LoginRefused(f"{target.name}: a host on the way to it: {said[:WORDS]}")
    attempts = login.Attempts(
        list(story.offered),
        methods=list(story.methods),
        said=said[:WORDS],
        passed=list(story.passed),
        address=failure.address,
    )
    error = login.make_login_error(target, attempts)
    error.hint = _hint_login(story, target.name) or error.hint
    return error


def _hint_login(story: Story, name: str) -> str | None:
    """Return the next step after a login that ssh itself knows more of; None: as for any other."""
    if story.passed and {*login.HUMAN} & {*story.methods} - {*story.offered}:
        return None
    if found := next(filter(None, map(TOO_OPEN.match, story.words)), None):
        return f"ssh uses no key that others may read: chmod 600 {shlex.quote(found[1])}"
    if story.accepted and not story.passed:
        return "the key is right and could not be used: `ssh-add` it first, without a terminal nobody can be asked for its passphrase"
    if story.methods and not {"publickey", "password"} & {*story.methods}:
        return f"log in once by hand: ssh {name}; without a terminal only a key or a ticket can"
    return None


def _explain_way(failure: Failure) -> Exception | None:
    """Return that a host on the way lets nobody through."""
    said = None if failure.story.banner else find_line(FORBIDDEN, failure.others)
    if said is None:
        return None
    return HostUnfit(
        f"{failure.identity.target.name}: a host on the way lets us in, but not through: {said[:WORDS]}",
        hint=FORBIDDEN_HINT,
    )


def explain_silence(failure: Failure, seconds: float) -> Exception:
    """Return what it is that ssh has neither logged in nor ended within its limits: nobody there, or nobody who goes on."""
    name = failure.identity.target.name
    if failure.dialled or failure.story.banner:
        return ConnectionLost(f"{name}: did not finish the login within {seconds:g} s")
    reason = f"no SSH banner within {seconds:g} s"
    return Unreachable(f"{name} is unreachable: {reason}", reason=reason)


def _explain_absence(failure: Failure) -> Exception | None:
    """Return that nobody answers: only where no banner was ever seen, and ssh or a jump host says so."""
    if failure.dialled or failure.story.banner:
        return None
    said = find_line(UNREACHABLE, failure.words)
    if said is None:
        return None
    reason, name = said[:WORDS], failure.identity.target.name
    behind = bool(NOT_BEHIND.search(said)) and are_through(failure)
    return Unreachable(f"{name} is unreachable: {reason}", reason=reason, behind=behind)


def are_through(failure: Failure) -> bool:
    """Say whether the hosts on the way were all reached: else the ssh to one has no banner, which that one says."""
    return not find_line(CLOSED_EARLY, failure.others)


def is_closed_early(story: Story) -> bool:
    """Say whether the connection was closed before the host's banner, with no other reason than that."""
    return not story.banner and bool(find_line(CLOSED_EARLY, story.words))


def _hint_option(bad: str) -> str:
    if "knownhostscommand" in bad.lower():
        return 'host_key with transport = "openssh" needs OpenSSH 8.5; leave one of them out'
    return "`ssh -v` by hand shows the same"
