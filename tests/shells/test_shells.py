"""Hosts of every kind through the real bootstrap: each works, or is an error that says why in the host's own words."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from remote_train import session
from remote_train.errors import RemoteTrainError
from tests.host.account_kit import the_agent
from tests.shells.accounts import KINDS, Accounts, lacks, need, need_root, running_accounts
from tests.shells.hosts import AXES, HOMES, NOISES, OPTIONS, PAGE, PYTHONS, SHELLS, Host, Trait, put_table
from tests.shells.pairs import make_pairs, pairs_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WAYS = ("paramiko", "openssh")
DEPTHS = (0, 1, 2)
SINGLE = [Host((SHELLS[0],)), *(Host((trait,)) for traits in AXES.values() for trait in traits[1:])]
DAILY = {
    "zsh",
    "nologin",
    "prints 300 KB",
    "reads stdin",
    "exports odd variables",
}
DAILY |= {
    "exit 0, in bash or zsh",
    "ForceCommand of its own",
    "none at all",
    "dies",
    "3.6",
    "read-only",
    "noexec",
    "64 open files",
}
PATIENCE = 4.0
SEED = 20261127


@pytest.fixture(scope="module")
def accounts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Accounts]:
    need_root()
    with running_accounts(tmp_path_factory.mktemp("shells"), SINGLE) as made:
        yield made


def visit(accounts: Accounts, host: Host, *way: Any) -> dict[str, Any]:
    """Bring our program up on a host and ask it something."""
    transport = accounts.transport(host, *way)
    try:
        opened = session.open_session(transport, the_agent(), host.first("python", "") or None)
        try:
            opened.request("open", state_dir=None)
            return opened.request("list")
        finally:
            opened.close()
    finally:
        transport.close()


def judge(accounts: Accounts, host: Host, *way: Any) -> None:
    """Assert that a host works, or fails as one of its faults does."""
    faults = host.faults()
    if not faults:
        assert visit(accounts, host, *way)["runs"] == [], host.label
        return
    error = refuse(accounts, host, *way)
    fitting = [f.code == error.exit_code and f.words in str(error) for f in faults]
    assert any(fitting), f"{host.label} by {way}: {error!r}"
    assert error.hint, error


def refuse(accounts: Accounts, host: Host, *way: Any) -> RemoteTrainError:
    """Return what a host that cannot work is refused with."""
    try:
        answer = visit(accounts, host, *way)
    except RemoteTrainError as error:
        return error
    raise AssertionError(f"{host.label} by {way} works: {answer}")


def param(host: Host) -> Any:
    marks = [] if host.label in DAILY else [pytest.mark.slow]
    return pytest.param(host, marks=marks, id=host.label)


@pytest.mark.parametrize("host", [param(host) for host in SINGLE])
def test_a_host_works_or_says_why(accounts: Accounts, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    need(host)
    if any(fault.waits for fault in host.faults()):
        monkeypatch.setattr(session, "BOOTSTRAP_SECONDS", PATIENCE)
    judge(accounts, host)
    if host.label not in DAILY:
        judge(accounts, host, "openssh", "rsa")


def judge_all(folder: Any, rows: Sequence[tuple[Host, tuple[Any, ...]]]) -> None:
    """Assert all rows, on one sshd."""
    rows = [row for row in rows if not lacks(row[0])]
    hosts = {host.label: host for host, _ in rows}
    with running_accounts(folder, list(hosts.values())) as made:
        for host, way in rows:
            judge(made, host, *way)


def make_rows(axes: Sequence[Sequence[Trait]]) -> list[tuple[Host, tuple[Any, ...]]]:
    """Return hosts of these axes with transports, keys and numbers of jump hosts, so that every two things meet."""
    print("seed", SEED)
    ways: list[Sequence[Any]] = [WAYS, KINDS, DEPTHS]
    rows = []
    for row in make_pairs([len(axis) for axis in (*axes, *ways)], SEED):
        traits = tuple(axis[i] for axis, i in zip(axes, row[: len(axes)], strict=True))
        rows.append((Host(traits), tuple(axis[i] for axis, i in zip(ways, row[len(axes) :], strict=True))))
    return rows


def test_shells_noises_options_transports_keys_and_jumps_meet_in_pairs(tmp_path: Any) -> None:
    need_root()
    noises = [trait for trait in NOISES if trait.name in ("prints", "exports odd variables")]
    options = [trait for trait in OPTIONS if trait.name in ("MaxSessions 1", "RekeyLimit 1M", "PermitTTY no")]
    judge_all(tmp_path, make_rows([SHELLS[3:6], noises, options]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_that_does_not_wait_meets_in_pairs(tmp_path: Any) -> None:
    need_root()
    judge_all(tmp_path / "pythons", make_rows([SHELLS[:8], quick(NOISES), quick(OPTIONS), quick(PYTHONS)]))
    judge_all(tmp_path / "homes", make_rows([SHELLS[:6], quick(OPTIONS), quick(HOMES)]))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_shell_with_every_rc_file_and_every_option(tmp_path: Any) -> None:
    need_root()
    product = itertools.product(SHELLS[:8], quick(NOISES), quick(OPTIONS))
    turns = itertools.cycle(itertools.product(WAYS, KINDS, DEPTHS))
    judge_all(tmp_path, [(Host(traits), next(turns)) for traits in product])


def quick(traits: Sequence[Trait]) -> list[Trait]:
    """Leave out what is told by waiting for it."""
    return [trait for trait in traits if not trait.waits and trait.name != "sleeps a second"]


def test_rows_hold_every_pair() -> None:
    sizes = (5, 3, 2, 4)
    rows = make_pairs(sizes, SEED)
    held = set().union(*map(pairs_of, rows))
    assert len(held) == 5 * 3 + 5 * 2 + 5 * 4 + 3 * 2 + 3 * 4 + 2 * 4
    assert len(rows) < 30 < 5 * 3 * 2 * 4


def test_the_table_of_the_page_is_what_is_tested() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == put_table(page), "python -m tests.shells.hosts"
