"""Names, variables, values, arguments, paths and hosts made to be commands: they arrive as they are, or are refused; nothing runs."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from remote_train.bootstrap import make_bootstrap
from remote_train.config.host_spec import Hosts
from remote_train.config.hostnames import choose_host
from remote_train.consent import check_name
from remote_train.errors import UsageError
from remote_train.host import layout
from remote_train.jobs import make_run_id
from tests.faults.counts import PATIENT, Goal

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.faults.counts import Trial
    from tests.host.account_kit import Account

pytestmark = PATIENT

BATCH = 500
"""Cases of one trial: they travel with one training."""
COMMANDS = (
    *(
        "$({})",
        "`{}`",
        ";{};",
        "&&{}&&",
        "|{}|",
        "\n{}\n",
        "\r{}",
        "'; {}; '",
        '"; {}; "',
        "&{}&",
        "${{IFS}}{}",
    ),
    *(
        "-oProxyCommand={}",
        "-F{}",
        "--{}",
        "-e {}",
        "@{}",
        "~/{}",
        "$HOME/{}",
        "%h {}",
        "%s%n%x {}",
        "{{0.__class__}} {}",
    ),
    *(
        "\\$({})",
        "\x1b]0;{}\x07",
        "<({})",
        ">{}",
        "!{}",
        "*{}",
        "é{}\u202e",
        "\ud7ff{}",
        "#{}\n{}",
        "$'\\n{}'",
        "= {}",
    ),
)
NAMES = "abcXYZ019_-. :@/[]%$`'\"\\;&|<>(){}*?!~#=,\t\n\x01\x7fé漢\u202e🙂"
SCRIPT = """
import hashlib, json, os, sys
given = {key: value for key, value in os.environ.items() if key.startswith("CASE_")}
names = sorted(path for top, _, files in os.walk("paths") for path in files)
digest = lambda thing: hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()
print("came", digest(given), digest(sys.argv[1:]), digest(names), flush=True)
"""


def digest(thing: object) -> str:
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()


def make_text(chance: random.Random, canary: Path) -> str:
    """Return a text that makes the canary's file where anything executes it."""
    command = chance.choice(COMMANDS).format(f"touch {canary}", *[f"touch {canary}"] * 2)
    noise = "".join(chance.choices(NAMES, k=chance.randrange(6)))
    return chance.choice((noise + command, command + noise, command)).replace("\0", "")


def look_at_names(text: str) -> None:
    """Hand a text to every rule that lets a name through; what passes holds nothing that a shell or ssh would obey."""
    assert not layout.is_run_id(text)
    assert layout.is_run_id(make_run_id("project", 0.0))
    with pytest.raises(UsageError):
        check_name(text, "--env")
    with pytest.raises(UsageError):
        make_bootstrap("0" * 64, "0" * 16, text)
    for name in (text, f"me@{text}", f"{text}@box.lan", f"{text}.lan", f"-{text}"):
        try:
            host = choose_host(name, Hosts(), ("-oProxyCommand=x", text))
        except UsageError:
            continue
        for word in (*host.address, host.user or ""):
            assert not word.startswith("-")
            # An alias is the user's own word of ~/.ssh/config, and is handed to ssh as one argument.
            assert name == text or not set(word) & set("'\"`$;&<>|(){}\n\0")


def run_batch(account: Account, trial: Trial, canary: Path) -> None:
    texts = [make_text(trial.chance, canary) for _ in range(BATCH)]
    for text in texts:
        look_at_names(text)
    env = {f"CASE_{number}": text for number, text in enumerate(texts)}
    paths = sorted({text.replace("/", "\u2215")[:60] for text in texts} - {".", "..", ""})
    session = account.connect()
    files: dict[str, str | bytes] = {"train.py": SCRIPT, **{f"paths/{name}": "x" for name in paths}}
    package = account.ship(session, files)
    half = dict(list(env.items())[::2])
    plain = {key: value for key, value in env.items() if key not in half}
    run = f"run-{trial.number}"
    argv = ("train.py", *texts)
    session.request("start", **account.message(package, *argv, run=run, env=plain, secrets=half))
    session.close()
    from tests.host.account_kit import Started

    came = Started(account, run).says(b"came ")
    assert came.decode().split() == [digest(env), digest(texts), digest(paths)]
    assert Started(account, run).end()["code"] == 0
    assert not canary.exists()


def test_nothing_that_is_given_is_executed(account: Account, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with Goal("injection: texts made to be commands execute nothing", reduced=BATCH, nightly=50_000) as goal:
        for trial in goal:
            trial.weight = BATCH
            with trial:
                run_batch(account, trial, canary)
    assert [path.name for path in tmp_path.rglob("canary*")] == []
