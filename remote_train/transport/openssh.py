"""SSH by the user's own ssh: whatever its ssh_config can do, this can.

ssh runs in a process group of its own with its stdin and stdout as our stream, its log apart from the host's stderr
(openssh_log.py). It checks the host's key and logs in; we read from its log how far it came (openssh_words.py). At a
terminal it may ask a person, and is given the terminal for that time.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from remote_train.errors import ConnectionLost, HostKeyRefused, LoginRefused, Unreachable
from remote_train.transport import foreground, login
from remote_train.transport.child import Child
from remote_train.transport.dial import Dialling, Endpoint, Refused
from remote_train.transport.openssh_command import make_command
from remote_train.transport.openssh_log import Limits, SshLog, make_lines
from remote_train.transport.openssh_trust import hold_to, read_hops
from remote_train.transport.openssh_words import (
    Failure,
    Story,
    are_through,
    describe_way,
    explain,
    explain_silence,
    is_closed_early,
    parse_story,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from remote_train.transport import Notify, SshTarget
    from remote_train.transport.dial import Dialled
    from remote_train.transport.foreground import Terminal
    from remote_train.transport.openssh_command import Policy, Way

PERSON_SECONDS = 300.0
"""A person at the terminal has so long for all that ssh asks."""
WAY_SECONDS = 90.0
"""A login through others at a terminal: their questions about keys cannot be told from silence."""
END_SECONDS = 2.0
"""From the end of the stream to ssh's own."""
LOST = 255
"""What ssh ends with when it failed itself; a command may end with it too."""


class OpensshTransport:
    """One host over ssh; `ways` are its addresses, in the order of `target.addresses`.

    `dialled` is a connection that a dialling has brought: it says which address answers. `open` raises what
    ParamikoTransport's does, and ConfigError for an ssh_config that ssh refuses. Only the first `open` may ask a person.
    """

    def __init__(
        self,
        target: SshTarget,
        ways: Sequence[Way],
        policy: Policy,
        *,
        dialled: Dialled | None = None,
        notify: Notify | None = None,
    ) -> None:
        self.name = target.name
        self._target = target
        self._ways = list(ways)
        self._policy = policy
        self._dialled = dialled
        self._notify = notify
        self._channel: OpensshChannel | None = None
        self.seen: dict[str, str] = {}
        """What ssh has said of the host's key and of the login, as far as it came."""

    def open(self, command: str) -> OpensshChannel:
        """Log in and run `command`; an address with a wrong key is dropped for the next one of this host."""
        self._close_channel()
        left = list(self._ways)
        refusal: HostKeyRefused | None = None
        closed: _ClosedEarly | None = None
        absent: list[str] = []
        while left:
            way, dialled = self._choose(left, refusal)
            left.remove(way)
            try:
                self._channel = self._try(way, command, dialled=dialled)
            except HostKeyRefused as error:
                left = self._leave_out(left, way, error)
                declined = self._policy.prompts and error.facts.get("verdict") in {"unknown", "refused"}
                if declined or not left:
                    raise
                refusal = error
                self._say(error.message if way.jumps else f"{error.message}; {way.hostname} is not used")
            except (Unreachable, _ClosedEarly) as error:
                left = self._leave_out(left, way, error)
                closed = error if isinstance(error, _ClosedEarly) else closed
                if not left or not self._proxied:
                    raise refusal or closed or error from None
                absent.append(str(error))
                if self._policy.prompts:
                    self._say(f"{error}; another address is tried, and a host on the way may ask again")
            else:
                self._policy = replace(self._policy, prompts=False)
                return self._channel
        raise refusal or Unreachable("; ".join(absent) or f"{self.name} has no address")

    def _leave_out(
        self, ways: Sequence[Way], way: Way, error: HostKeyRefused | Unreachable | _ClosedEarly
    ) -> list[Way]:
        """Return the ways that are left: an address that those on the way have led to in vain has no other."""
        own_key = error.facts.get("key_of") == login.plain_name(self._target)
        vain = own_key or error.facts.get("behind")
        return [each for each in ways if not vain or each.hostname != way.hostname]

    def close(self) -> None:
        """Close the channel that is open, and a connection that was never used."""
        self._close_channel()
        self._drop_dialled()

    def _close_channel(self) -> None:
        if self._channel:
            self._channel.close()
            self._channel = None

    def _drop_dialled(self) -> None:
        if self._dialled:
            self._dialled.socket.close()
            self._dialled = None

    def _say(self, notice: str) -> None:
        if self._notify:
            self._notify(notice)

    @property
    def _proxied(self) -> bool:
        """Only ssh can find out whether the host answers."""
        return any(way.proxied for way in self._ways)

    def _choose(self, ways: Sequence[Way], refusal: HostKeyRefused | None) -> tuple[Way, bool]:
        """Return the way to try next, and whether an SSH server was seen to answer there."""
        if self._proxied:
            return ways[0], False
        if self._dialled is None:
            addresses = tuple(way.hostname for way in ways)
            outcome = Dialling(Endpoint(addresses, self._target.port)).wait()
            if isinstance(outcome, Refused):
                raise refusal or Unreachable(
                    f"{self.name} is unreachable: {outcome.reason}", reason=outcome.reason
                )
            self._dialled = outcome
        answering = self._dialled.address
        self._drop_dialled()  # our line is on it already: ssh makes its own connection
        return next((way for way in ways if way.hostname == answering), ways[0]), True

    def _try(self, way: Way, command: str, *, dialled: bool) -> OpensshChannel:
        """Log in by one way; a connection that a proxy closes before the host's banner is tried twice.

        But once where a jump host may have asked a person already: that it was closed is then all that is known.
        """
        closed = "closed the connection before its SSH banner"
        try:
            return self._connect(way, command, dialled=dialled)
        except _ClosedEarly as error:
            if dialled:
                raise ConnectionLost(str(error)) from None
            was_asked = error.facts["behind"] or len(way.jumps) > 1
            if self._policy.prompts and way.jumps and was_asked:
                message = f"{self.name} {closed}, and a host on the way might ask for a second try ({error})"
                raise _ClosedEarly(message, behind=error.facts["behind"]) from None
        try:
            return self._connect(way, command, dialled=dialled)
        except _ClosedEarly as error:
            reason = f"{closed}, twice ({error})"
            message = f"{self.name} is unreachable: {reason}"
            raise Unreachable(message, reason=reason, behind=error.facts["behind"]) from None

    def _connect(self, way: Way, command: str, *, dialled: bool) -> OpensshChannel:
        with contextlib.ExitStack() as stack:
            terminal = stack.enter_context(foreground.taken()) if self._policy.prompts else None
            policy = replace(self._policy, prompts=terminal is not None)
            identity = login.read_identity(self._target, policy.pin, self._notify)
            jumps, policy = read_hops(self._target.jumps, hold_to(identity, policy), self._notify)
            hops = tuple(zip(jumps, (jump.hostname for jump in way.jumps), strict=True))
            failure = Failure(identity, way.hostname, parse_story(()), dialled=dialled, hops=hops)
            log = SshLog(self._hear)
            argv = make_command(way, policy, log.path, command)
            try:
                return start(argv, log, failure, terminal, proxied=way.proxied)
            except LoginRefused as error:
                if way.card and terminal is None:
                    error.hint = f"ssh uses a card at a terminal only; `ssh-add -s {shlex.quote(way.card)}` puts its keys into an agent"
                raise
            finally:
                self.seen = describe_way(parse_story(log.lines))

    def _hear(self, line: str) -> None:
        """Ask for what ssh, without a terminal as its stderr, does not ask for."""
        if line.startswith("debug1: Server accepts key: ") and "-SK " in line:
            self._say(f"{self.name}: touch your security key if it asks for it")


class _ClosedEarly(ConnectionLost):
    """Closed before the host's banner, and nobody said why; `behind`: by what those on the way have led to."""

    def __init__(self, message: str, *, behind: bool) -> None:
        super().__init__(message)
        self.facts = {"behind": behind}


def make_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return ssh's environment: in English, and without a language that SendEnv would pass on."""
    return {
        name: value
        for name, value in environ.items()
        if name not in {"LANG", "LANGUAGE"} and name[:3] != "LC_"
    }


def start(
    argv: Sequence[str], log: SshLog, failure: Failure, terminal: Terminal | None, *, proxied: bool = False
) -> OpensshChannel:
    """Start ssh and return its channel once it has logged in; raise which of our errors it ended with."""
    try:
        channel = OpensshChannel(argv, log, failure, own_terminal=terminal is None)
    except OSError as error:
        log.end()
        raise ConnectionLost(f"{failure.identity.target.name}: {argv[0]}: {error.strerror}") from error
    try:
        limits = Limits(login.LOGIN_SECONDS)
        if terminal is not None:
            limits = Limits(WAY_SECONDS if proxied else limits.seconds, PERSON_SECONDS, terminal.is_hidden)
            terminal.lend(channel.group)
        channel.wait_login(limits)
    except BaseException:
        channel.kill()  # nothing has begun, and the command may be over before a patient end
        channel.close()
        raise
    return channel


class OpensshChannel(Child):
    """The stream of one command over one ssh."""

    def __init__(self, argv: Sequence[str], log: SshLog, failure: Failure, *, own_terminal: bool) -> None:
        """Start ssh in a session of its own, or in a process group that can be lent the terminal."""
        place: dict[str, object] = {"start_new_session": True} if own_terminal else {"process_group": 0}
        self._log = log
        self._failure = failure
        self._asks = not own_terminal
        super().__init__(failure.identity.target.name, argv, env=make_environment(os.environ), **place)
        self._wait = threading.Thread(target=self._await_end, name="ssh", daemon=True)
        self._wait.start()

    @property
    def group(self) -> int:
        """The process group of ssh and what it starts."""
        return self._child.pid

    def kill(self) -> None:
        """End ssh and what it started at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, signal.SIGKILL)

    def wait_login(self, limits: Limits) -> None:
        """Wait for ssh to log in; raise why it has not."""
        allowed = limits.seconds
        logged_in = self._log.wait_login(limits)
        if logged_in is None and limits.seconds > 0:
            raise ConnectionLost(f"{self._name}: nobody answered within {PERSON_SECONDS:g} s")
        if logged_in is None:
            # A question of a jump host's ssh that waits for its answer is not a host that is not there.
            unsure = replace(self._failure, story=self._story(), dialled=self._failure.dialled or self._asks)
            raise explain_silence(unsure, allowed)
        if not logged_in:
            raise self._explain()

    def receive(self, timeout: float) -> bytes | None:
        """Return what has come, b"" when the command has ended, None after `timeout` seconds of nothing.

        Raise ConnectionLost when ssh failed, HostUnfit when the host ran no command.
        """
        data = super().receive(timeout)
        if data == b"" and not self._closing.locked():
            self._wait.join(END_SECONDS)
            code = self._child.poll()
            if code is not None and (code < 0 or (code == LOST and not self._story().ended)):
                raise self._explain()
        return data

    def _story(self) -> Story:
        return parse_story(self._log.lines)

    def _explain(self) -> Exception:
        code = self._child.poll()
        if code == -signal.SIGINT:  # Ctrl-C while ssh had the terminal was meant for us
            os.kill(os.getpid(), signal.SIGINT)
        story = parse_story(self._log.lines)
        if code is not None and code < 0:
            return ConnectionLost(f"{self._name}: ssh was ended by {signal.Signals(-code).name}")
        failure = replace(self._failure, story=story, others=tuple(make_lines(self.stderr_tail())))
        error = explain(failure)
        if type(error) is ConnectionLost and is_closed_early(story):
            return _ClosedEarly(str(error), behind=bool(failure.hops) and are_through(failure))
        return error

    def _await_end(self) -> None:
        self._child.wait()
        self._log.end()
