"""Ways to a host that lead through others: real sshd's one behind the other, and commands of the user's own."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remote_train.errors import HostKeyRefused, HostUnfit, LoginRefused, Unreachable
from remote_train.transport.paramiko_look import read_offered_key
from remote_train.transport.paramiko_ssh import ParamikoTransport, close_gates
from tests.sshd import (
    Sshd,
    SshdTarget,
    free_port,
    key_bytes,
    make_key,
    public_line,
    read_to_end,
    run,
    running_sshd,
    wait_until,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from remote_train.transport.paramiko_gate import Gate

pytestmark = pytest.mark.sshd


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Sshd]]:
    """Three hosts with keys of their own: two to go through, and the last."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("gate", "inner", "box")]
        yield [stack.enter_context(running_sshd(folder)) for folder in folders]


def through(chain: list[Sshd], depth: int, **changes: object) -> SshdTarget:
    hops = [sshd.target(name=f"jump host {number}") for number, sshd in enumerate(chain[:depth], 1)]
    return chain[-1].target(jumps=hops, **changes)


def attempts(sshd: Sshd) -> int:
    return sshd.read_log().count("userauth-request")


@pytest.mark.parametrize("depth", [1, 2])
def test_a_command_runs_behind_jump_hosts(depth: int, chain: list[Sshd]) -> None:
    logins = [attempts(sshd) for sshd in chain]
    transport = ParamikoTransport(through(chain, depth))
    channel = transport.open("cat")
    sent = os.urandom(300_000)
    channel.send(sent)
    received = bytearray()
    while len(received) < len(sent):
        received += channel.receive(20) or b""
    assert received == sent
    transport.close()
    passed = [after > before for after, before in zip(map(attempts, chain), logins, strict=True)]
    assert passed == [True, depth == 2, True]


def test_no_connection_stays_when_it_is_closed(chain: list[Sshd]) -> None:
    before = chain[0].read_log().count("do_cleanup")
    channel = ParamikoTransport(through(chain, 1)).open("echo in")
    assert read_to_end(channel) == b"in\n"
    channel.close()  # a session knows the channel only
    wait_until(lambda: chain[0].read_log().count("do_cleanup") > before, "the jump host to see us leave")


@pytest.mark.parametrize("bad", [1, 2])
def test_a_jump_host_with_another_key_learns_nothing(bad: int, chain: list[Sshd], tmp_path: Path) -> None:
    target = through(chain, 2)
    wrong = tmp_path / "known_hosts"
    other = public_line(make_key(tmp_path / "other"))
    wrong.write_text(f"[127.0.0.1]:{chain[bad - 1].port} {other}\n")
    hops = list(target.jumps)
    hops[bad - 1] = replace(hops[bad - 1], known_hosts_files=(wrong,))
    tried = [attempts(sshd) for sshd in chain]
    with pytest.raises(HostKeyRefused, match=f"the key of jump host {bad}.* has changed") as caught:
        run(replace(target, jumps=hops))
    assert caught.value.exit_code == 11
    now = [attempts(sshd) for sshd in chain]
    assert now[bad - 1 :] == tried[bad - 1 :], "nothing was tried there, nor behind it"


def test_the_host_itself_is_judged_behind_a_jump_host_too(chain: list[Sshd], tmp_path: Path) -> None:
    tried = attempts(chain[-1])
    with pytest.raises(HostKeyRefused, match=r"the key of box .*is not known"):
        run(through(chain, 1, known_hosts_files=(tmp_path / "none",)))
    assert attempts(chain[-1]) == tried


def test_a_key_that_was_accepted_for_a_jump_host_opens_nothing_else(
    chain: list[Sshd], tmp_path: Path
) -> None:
    """A jump host that joins us to itself instead of the host behind it."""
    gate = chain[0]
    asked: list[str] = []
    hop = gate.target(name="jump host 1", known_hosts_files=(tmp_path / "accepted",), host_key_alias="gate")
    pinned = tmp_path / "pinned"
    pinned.write_text(f"box {public_line(make_key(tmp_path / 'other'))}\n")
    box = gate.target(jumps=[hop], known_hosts_files=(pinned,), host_key_alias="box")

    def ask(question: str) -> bool:
        asked.append(question)
        return True

    with pytest.raises(HostKeyRefused, match=r"the key of box .*has changed"):
        run(box, ask=ask)
    assert len(asked) == 1


def test_a_jump_host_that_lets_us_not_in_is_named(chain: list[Sshd], tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    target = through(chain, 2)
    hops = [target.jumps[0], replace(target.jumps[1], identity_files=(stranger,))]
    with pytest.raises(LoginRefused, match="jump host 2 did not let") as caught:
        run(replace(target, jumps=hops))
    assert caught.value.exit_code == 12


def test_what_does_not_answer_is_unreachable_and_named(chain: list[Sshd]) -> None:
    gone = replace(chain[0].target(name="jump host 1"), port=free_port())
    with pytest.raises(Unreachable, match=r"jump host 1: .*connection refused"):
        run(chain[-1].target(jumps=[gone]))
    with pytest.raises(
        Unreachable, match=r"behind jump host 1: connect failed|behind jump host 1: connection refused"
    ):
        run(through(chain, 1, port=free_port()))


def test_a_jump_host_that_forbids_it_is_said(tmp_path: Path, chain: list[Sshd]) -> None:
    with running_sshd(tmp_path, ["AllowTcpForwarding no"]) as gate:
        hop = gate.target(name="jump host gate")
        with pytest.raises(HostUnfit, match="jump host gate lets us in, but not through"):
            run(chain[-1].target(jumps=[hop]))


def test_the_second_address_behind_a_jump_host_is_used(chain: list[Sshd]) -> None:
    said: list[str] = []
    target = through(chain, 1, addresses=("no-such-host.invalid", "127.0.0.1"))
    assert run(target, notify=said.append) == b"in\n"


# ---- ProxyCommand ----


def carry(sshd: Sshd, before: str = "") -> str:
    """A command that joins its stdin and stdout with a port, with nothing but ssh."""
    argv = ["ssh", "-F", "none", "-i", str(sshd.user_key), "-o", f"UserKnownHostsFile={sshd.known_hosts}"]
    argv += ["-o", "BatchMode=yes", "-p", str(sshd.port), "-W", f"127.0.0.1:{sshd.port}", "127.0.0.1"]
    return before + shlex.join(argv)


def test_a_proxy_command_carries_the_connection_and_ends_with_it(chain: list[Sshd], tmp_path: Path) -> None:
    note = tmp_path / "pid"
    command = f"sh -c 'echo $$ > {note}; exec \"$@\"' sh " + carry(chain[-1])
    channel = ParamikoTransport(chain[-1].target(proxy_commands={"127.0.0.1": command})).open("echo in")
    assert read_to_end(channel) == b"in\n"
    process = int(note.read_text())
    os.kill(process, 0)
    channel.close()
    wait_until(lambda: not Path(f"/proc/{process}").exists(), "the command to be gone")


def test_each_address_has_a_command_of_its_own(chain: list[Sshd], tmp_path: Path) -> None:
    box, gate = chain[-1], chain[0]
    box_only = tmp_path / "known_hosts"
    box_only.write_text(f"[127.0.0.3]:{box.port} {public_line(box.host_keys[0])}\n")
    commands = {"127.0.0.1": "false", "127.0.0.2": carry(gate), "127.0.0.3": carry(box)}
    assert (
        run(box.target(addresses=list(commands), proxy_commands=commands, known_hosts_files=(box_only,)))
        == b"in\n"
    )


def test_a_jump_host_may_be_reached_by_a_command(chain: list[Sshd]) -> None:
    hop = chain[0].target(name="jump host 1", proxy_commands={"127.0.0.1": carry(chain[0])})
    assert run(chain[-1].target(jumps=[hop])) == b"in\n"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'echo no route today >&2; exit 3'", 'ended without an SSH banner; it said "no route today"'),
        ("/nonexistent/program", "ended without an SSH banner"),
        ("sh -c 'read line; echo hello'", "hello"),
    ],
)
def test_a_command_that_leads_nowhere_is_unreachable(command: str, words: str) -> None:
    with pytest.raises(Unreachable, match=words):
        run(SshdTarget(proxy_commands={"127.0.0.1": command}))


def test_an_ssh_in_a_command_that_refuses_a_key_or_is_refused_is_no_silence(
    chain: list[Sshd], tmp_path: Path
) -> None:
    command = carry(chain[0])
    unknown = command.replace(str(chain[0].known_hosts), str(tmp_path / "none"))
    stranger = command.replace(str(chain[0].user_key), str(make_key(tmp_path / "stranger")))
    before = attempts(chain[-1])
    with pytest.raises(HostKeyRefused, match="Host key verification failed") as key:
        run(chain[-1].target(proxy_commands={"127.0.0.1": unknown}))
    with pytest.raises(LoginRefused, match="Permission denied") as login:
        run(chain[-1].target(proxy_commands={"127.0.0.1": stranger}))
    assert (key.value.exit_code, login.value.exit_code) == (11, 12)
    assert attempts(chain[-1]) == before


def test_many_looks_behind_jump_hosts_are_one_login_there(chain: list[Sshd]) -> None:
    gates: list[Gate] = []
    accepted = [sshd.read_log().count("Accepted publickey") for sshd in chain]
    for kind in ("ssh-ed25519", "ssh-rsa"):
        seen = read_offered_key(through(chain, 2), None, (kind,), gates)
        assert seen.key == key_bytes(chain[-1].host_keys[0])
    close_gates(gates)
    more = [sshd.read_log().count("Accepted publickey") for sshd in chain]
    assert [now - then for now, then in zip(more, accepted, strict=True)] == [1, 1, 0]
