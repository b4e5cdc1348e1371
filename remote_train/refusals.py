"""From an error the host answered with to the error a user sees."""

from __future__ import annotations

from typing import Any

from remote_train import errors
from remote_train.host import layout

_KINDS: dict[str, type[errors.RemoteTrainError]] = {
    kind.kind: kind
    for kind in (
        errors.UsageError,
        errors.HostUnfit,
        errors.HostBusy,
        errors.HostSpace,
        errors.NameTaken,
        errors.StartFailed,
        errors.RunLost,
        errors.PullIncomplete,
        errors.VerificationFailed,
        errors.ProtocolError,
    )
}

_HINTS = {
    "host-busy": "leave --on-busy out and the run waits in the queue; `--on-busy share` starts beside them, --host NAME asks another host",
    "host-space": "free space there, or set `state_dir` for the host in hosts.toml",
    "name-taken": "choose another --name, or leave it out",
    "pull-incomplete": "leave out --weights to bring it whole",
}

_HINTS_OF = {
    ("bench", "host-busy"): "run it again when the GPU is free, or measure another host: --host NAME",
    ("open", "host-unfit"): (
        "`state_dir` in hosts.toml names where runs are kept: a folder that this account may make and write"
    ),
}
"""Where the step after an error of that kind is another one."""


class SourceChanged(Exception):
    """The file on the host is not the one that was being fetched; fetch it anew."""


class NoSuchFile(Exception):
    """The file is not there any more."""


_ANSWERED: dict[str, type[Exception]] = {"changed": SourceChanged, "no-such-file": NoSuchFile}

_ANYWHERE = {"host-unfit", "host-space", "run-lost", "protocol"}
_ONLY_IN = {
    "usage": {"start"},
    "name-taken": {"start"},
    "host-busy": {"start", "bench"},
    "start-failed": {"start"},
    "verification-failed": {"manifest", "blobs", "stored", "get", "follow"},
    "pull-incomplete": {"weights"},
    "changed": {"get", "weights"},
    "no-such-file": {"get", "files", "weights"},
}
"""Where a host may say so: a kind decides what is done next, and with which exit code."""


def hint_of(kind: str) -> str | None:
    """Return the next step after an error of this kind, whoever notices it."""
    return _HINTS.get(kind)


def make_refusal(host: str, op: str, error: object) -> Exception:
    """Return the exception for an `error` reply; a kind that is unknown, or has no place here, is a ProtocolError."""
    facts: dict[str, Any] = error if isinstance(error, dict) else {}
    kind, message = str(facts.get("kind"))[:40], str(facts.get("message"))[:2000]
    if kind not in _ANYWHERE and op not in _ONLY_IN.get(kind, ()):
        return errors.ProtocolError(f"{host} refused `{op}` with {kind!r}: {message}", host=host)
    if kind in _ANSWERED:
        return _ANSWERED[kind](f"{host}: {message}")
    return _KINDS[kind](f"{host}: {message}", hint=_HINTS_OF.get((op, kind), _HINTS.get(kind)), host=host)


def make_fatal(host: str, event: dict[str, Any]) -> errors.RemoteTrainError:
    """Return the error for an agent's last word: its disk or a limit of its login, a mistake of ours, else the protocol."""
    if event.get("kind") == "bug":
        return errors.AgentFailed(
            f"{host}: our program there failed by a mistake of ours: {event.get('message')}"[:2000],
            hint=f"runs there go on; {layout.AGENT_LOG} in its state folder has more: report it",
            host=host,
        )
    refusal = make_refusal(host, "fatal", event)
    if isinstance(refusal, (errors.HostSpace, errors.HostUnfit)):
        return refusal
    return errors.ProtocolError(f"{host}: {event.get('message')}"[:2000])
