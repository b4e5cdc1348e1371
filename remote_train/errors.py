"""Everything that can go wrong, as one tree; each class knows its exit code.

    RemoteTrainError
    ├─ TrainingFailed      1   the user's code ended with another code than 0
    ├─ UsageError          2   command line
    │  └─ ConfigError      2   hosts.toml, project file, ssh_config: every problem at once
    ├─ Unreachable        10   no banner from any host, and no fallback
    ├─ HostKeyRefused     11   unknown, changed or revoked
    ├─ LoginRefused       12
    ├─ HostUnfit          13   also a local Python without torch
    │  └─ HostBusy        13   its GPUs are in use, and `--on-busy` says not to wait
    ├─ HostSpace          14
    ├─ RunStopped         15   ended by `stop`
    ├─ PackageError       20
    ├─ NameTaken          21
    ├─ StartFailed        22
    ├─ ConnectionGivenUp  30   the run goes on
    ├─ RunLost            31
    ├─ PullIncomplete     40
    ├─ VerificationFailed 41
    ├─ LocalSpace         42
    ├─ StopIncomplete     50
    └─ ProtocolError      60
       └─ AgentFailed     70   our own program on the host failed by a mistake of ours

An error says what and where in its message, and the next step in its hint. `ConnectionLost` is not in the
tree: it never ends a command by itself, the session answers it by reconnecting.
"""

from __future__ import annotations

EXIT_BUG = 70


class RemoteTrainError(Exception):
    """Carry a message, a hint (the next step) and facts for `--json`."""

    exit_code = EXIT_BUG
    kind = "bug"

    def __init__(self, message: str, *, hint: str | None = None, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.facts = facts


class TrainingFailed(RemoteTrainError):
    """The training ended by itself with a code other than 0, or by a signal."""

    exit_code = 1
    kind = "training-failed"


class UsageError(RemoteTrainError):
    """The command line asks for something that does not exist or does not fit together."""

    exit_code = 2
    kind = "usage"


class ConfigError(UsageError):
    """A configuration file is wrong; `problems` holds one line for each fault."""

    kind = "config"

    def __init__(self, problems: list[str], *, hint: str | None = None) -> None:
        super().__init__("\n".join(problems), hint=hint, problems=problems)
        self.problems = problems


class Unreachable(RemoteTrainError):
    """No SSH banner came from any host, and falling back was not allowed."""

    exit_code = 10
    kind = "unreachable"


class HostKeyRefused(RemoteTrainError):
    """The host's key is unknown, changed or revoked; nothing was sent."""

    exit_code = 11
    kind = "host-key"


class LoginRefused(RemoteTrainError):
    """The host answered and did not let us in."""

    exit_code = 12
    kind = "login"


class HostUnfit(RemoteTrainError):
    """The host was reached and cannot run this: shell, Python, torch, device."""

    exit_code = 13
    kind = "host-unfit"


class HostBusy(HostUnfit):
    """Its GPUs are in use, and the run was not to wait for them."""

    kind = "host-busy"


class HostSpace(RemoteTrainError):
    """The host's disk is full, over quota or read-only."""

    exit_code = 14
    kind = "host-space"


class RunStopped(RemoteTrainError):
    """The run ended because somebody stopped it."""

    exit_code = 15
    kind = "stopped"


class PackageError(RemoteTrainError):
    """The project cannot be packaged as it is."""

    exit_code = 20
    kind = "package"


class NameTaken(RemoteTrainError):
    """Another run has this name."""

    exit_code = 21
    kind = "name-taken"


class StartFailed(RemoteTrainError):
    """The supervisor could not start the training."""

    exit_code = 22
    kind = "start-failed"


class ConnectionGivenUp(RemoteTrainError):
    """The connection did not come back in the time allowed; the run goes on."""

    exit_code = 30
    kind = "connection-given-up"


class RunLost(RemoteTrainError):
    """The run is gone without an exit record: reboot, or its supervisor died."""

    exit_code = 31
    kind = "run-lost"


class PullIncomplete(RemoteTrainError):
    """Some files did not arrive; running the command again goes on."""

    exit_code = 40
    kind = "pull-incomplete"


class VerificationFailed(RemoteTrainError):
    """Bytes arrived that do not have the hash the other side stated; nothing was published."""

    exit_code = 41
    kind = "verification-failed"


class LocalSpace(RemoteTrainError):
    """This machine's disk is full, over quota or read-only."""

    exit_code = 42
    kind = "local-space"


class StopIncomplete(RemoteTrainError):
    """Processes of the run are still there."""

    exit_code = 50
    kind = "stop-incomplete"


class ProtocolError(RemoteTrainError):
    """The other side said something that is not the protocol."""

    exit_code = 60
    kind = "protocol"


class AgentFailed(ProtocolError):
    """Our own program on the host ended by a mistake of ours; runs there are not affected."""

    exit_code = EXIT_BUG
    kind = "agent-failed"


class ConnectionLost(Exception):
    """The byte stream ended or fell silent without an END frame; after `silence` seconds of nothing."""

    def __init__(self, message: str = "", *, silence: float = 0.0) -> None:
        super().__init__(message)
        self.silence = silence


def exit_code_of(error: RemoteTrainError | ConnectionLost) -> int:
    """Return the exit code of a command that an error has ended."""
    return error.exit_code if isinstance(error, RemoteTrainError) else ConnectionGivenUp.exit_code


class AgentEnded(ConnectionLost):
    """Our program on the host ended without a word, over a connection that lives: it was killed, or crashed."""
