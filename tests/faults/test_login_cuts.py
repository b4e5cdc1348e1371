"""A connection that breaks during its login is a lost one: never a refused key, a refused host or an unfit one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from remote_train.errors import ConnectionLost, Unreachable
from tests.faults.chaos_proxy import DOWN, FIN, RST, UP, ChaosProxy, Cut, Program
from tests.faults.counts import PATIENT, Goal, is_nightly
from tests.sshd import known_line_for, run

if TYPE_CHECKING:
    from tests.sshd import Sshd

pytestmark = [pytest.mark.sshd, PATIENT]


@pytest.mark.parametrize("kind", [FIN, RST])
def test_a_cut_in_the_login_is_a_lost_connection(sshd: Sshd, kind: str) -> None:
    with ChaosProxy(sshd.port) as proxy:
        known = sshd.folder / "known_hosts_of_proxy"
        known.write_text(known_line_for(sshd, proxy.port))
        target = sshd.target(port=proxy.port, known_hosts_files=(known,))
        assert run(target) == b"in\n"
        whole = proxy.lines[0].passed
        ways = [(way, at) for way in (UP, DOWN) for at in range(whole[way])]
        name = f"a {kind} in the SSH login: a lost connection, nothing else"
        with Goal(name, reduced=20, nightly=700, remark=f"{len(ways):,} places") as goal:
            for trial in goal:
                with trial:
                    way, at = trial.chance.choice(ways)
                    proxy.program = lambda _number: Program(cuts=(Cut(way, at, kind),))  # noqa: B023
                    try:
                        assert b"in\n".startswith(
                            run(target)
                        )  # after the login an end is no error to the transport
                    except (ConnectionLost, Unreachable) as error:
                        print(f"{way} {at}: {error}")
                    except Exception as error:
                        raise AssertionError(f"{way} {at}: {error!r}") from error
    assert is_nightly() or proxy.lines
