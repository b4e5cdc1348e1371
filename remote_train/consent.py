"""Which variables of this laptop a run gets: those of the flags, and those its project asks for after a yes.

The value of a secret comes from this process's environment, or from the person at the terminal. It is kept nowhere, goes
to the host in the start request, and is not shown (redaction.py); of the record only its name is a part.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remote_train.errors import UsageError
from remote_train.memory import consent_path
from remote_train.records import is_ours, read_json, remember_json
from remote_train.redaction import hide
from remote_train.transport import Person

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from remote_train.config.project_spec import ProjectSpec
    from remote_train.records import Run
    from remote_train.transport import Ask


def choose_environment(
    root: Path, spec: ProjectSpec, given: Sequence[str], secret: Sequence[str], ask: Ask | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the plain and the secret variables of a run; raise UsageError for one that has no value here.

    A secret that is named by the user and has no value is asked for, where somebody can answer. What a project was
    given as a secret stays one, and so does what a flag names: a project that lists it as plain later does not get it into the records.
    """
    plain = dict(_parse_given(item) for item in given)
    for name in secret:
        check_name(name, "--secret")
        if name in plain:
            raise UsageError(
                f"--env {name} would record what --secret {name} does not", hint="keep one of them"
            )
    hidden = {*secret, *spec.env_secret, *_read_consent(root)[1]}
    wanted_plain = [name for name in spec.env_forward if name not in plain and name not in hidden]
    wanted_secret = [
        name
        for name in (*spec.env_secret, *spec.env_forward)
        if name in hidden and name not in (*secret, *plain)
    ]
    allowed = _ask_consent(root, wanted_plain, wanted_secret, ask)
    plain.update({name: os.environ[name] for name in wanted_plain if name in allowed and name in os.environ})
    secrets = read_secrets(secret, ask)
    secrets.update(
        {name: os.environ[name] for name in wanted_secret if name in allowed and name in os.environ}
    )
    hide(secrets.values())
    return plain, secrets


def read_secrets(names: Iterable[str], ask: Ask | None) -> dict[str, str]:
    """Return the values of these secrets, asking for those that have none here; raise UsageError where nobody answers."""
    values = {name: _read_secret(name, ask) for name in dict.fromkeys(names)}
    hide(values.values())
    return values


def _read_secret(name: str, ask: Ask | None) -> str:
    if name in os.environ or not isinstance(ask, Person):
        return _read_own(name, "--secret")
    value = ask.hidden(f"Value of {name} (it is not shown)")
    if not value or "\0" in value:
        raise UsageError(f"--secret {name}: nothing was typed that could be its value")
    return value


def recall_environment(
    run: Run, spec: ProjectSpec, secret: Sequence[str], known: Mapping[str, str], ask: Ask | None
) -> dict[str, str]:
    """Return the secrets of a run that goes on: those `known`, and anew those of its record, its project, and `secret`.

    A record that this laptop did not write may be a stranger's: like a project file it is believed after a yes.
    """
    recorded = (run.read().get("job") or {}).get("secrets") or ()
    given, wished = ((*recorded, *secret), ()) if is_ours(run) else (tuple(secret), recorded)
    left = tuple(name for name in (*spec.env_secret, *wished) if name not in known)
    wishes = replace(spec, env_forward=(), env_secret=left)
    given = tuple(name for name in given if name not in known)
    return {**known, **choose_environment(Path(run.read()["root"]), wishes, (), given, ask)[1]}


def recall_secrets(run: Run, ask: Ask | None) -> dict[str, str]:
    """Return the secrets of a run's record while somebody is there to be asked; raise UsageError where one cannot be had."""
    return read_secrets((run.read().get("job") or {}).get("secrets") or () if is_ours(run) else (), ask)


def hide_known(run: Run) -> None:
    """Show no secret of a run that this process has in its environment: whoever looks at the run may have it printed."""
    names = (run.read().get("job") or {}).get("secrets") or () if is_ours(run) else ()
    hide(os.environ[name] for name in names if name in os.environ)


def _parse_given(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    check_name(name, f"--env {name}={'…' if value else ''}" if equals else "--env")
    return name, value if equals else _read_own(name, "--env")


def check_name(name: str, flag: str) -> None:
    """Raise UsageError for what cannot be the name of a variable; a value typed in its place is not repeated."""
    if name.isidentifier() and name.isascii():
        return
    if flag == "--secret" and "=" in name:
        raise UsageError(
            f"--secret {name.partition('=')[0]}: give its name alone: what is typed on a command line anybody can read",
            hint=f"`export {name.partition('=')[0]}=…` first, or type it when you are asked",
        )
    raise UsageError(f"{flag}: {name!r} is not the name of a variable")


def _read_own(name: str, flag: str) -> str:
    if name not in os.environ:
        hint = f"`export {name}=…` first" + (", or run it on a terminal" if flag == "--secret" else "")
        raise UsageError(f"{flag} {name}: it has no value here", hint=hint)
    return os.environ[name]


def _ask_consent(root: Path, plain: Iterable[str], secret: Iterable[str], ask: Ask | None) -> set[str]:
    """Return the names the user lets this project have; a project file may be a stranger's."""
    path = consent_path(root)
    known, secrets = _read_consent(root)
    plain_new = [name for name in plain if name not in known and name in os.environ]
    secret_new = [name for name in secret if name not in secrets and name in os.environ]
    new = [*plain_new, *secret_new]
    if not new:
        return known | secrets
    if ask is None:
        flags = [f"--env {name}" for name in plain_new] + [f"--secret {name}" for name in secret_new]
        raise UsageError(
            f"the project file asks for {', '.join(new)} of this machine's environment",
            hint=f"pass them on with {' '.join(flags)}, or run once on a terminal and say yes",
        )
    if ask(f"The project file asks for {', '.join(new)} of your environment. Pass them to its runs?"):
        known, secrets = known | set(plain_new), secrets | set(secret_new)
        remember_json(path, {"plain": sorted(known - secrets), "secret": sorted(secrets)})
    return known | secrets


def _read_consent(root: Path) -> tuple[set[str], set[str]]:
    """Return the plain and the secret names that the user lets a project have; of an old file all are secret."""
    remembered = read_json(consent_path(root))
    return set(remembered.get("plain", [])), {*remembered.get("secret", []), *remembered.get("names", [])}
