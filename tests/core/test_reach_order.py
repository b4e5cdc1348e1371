"""Which of several hosts is taken, and with which error it ends where none will do: unreachable, unfit, or without room."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from remote_train.bootstrap import make_unfit
from remote_train.config.host_spec import HostSpec
from remote_train.config.project_spec import ProjectSpec
from remote_train.errors import (
    ConnectionLost,
    HostSpace,
    HostUnfit,
    RemoteTrainError,
    Unreachable,
    UsageError,
)
from remote_train.plan import Job
from remote_train.reach import HostLink, Reached, reach_first
from remote_train.transport.keyholder import Keyholder, is_asked

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTS: dict[str, RemoteTrainError | None] = {
    "fit": None,
    "full": HostSpace("full: 5 bytes are free", hint="free space there", have=5),
    "small": HostSpace("small: 6 bytes are free", hint="as above", have=6),
    "unfit": HostUnfit("unfit: uv is not installed there"),
    "absent": Unreachable("absent: no answer"),
    "gone": Unreachable("gone: no answer"),
    "torchless": HostUnfit("torchless: /p (Python 3.11) has no torch"),
    "env": make_unfit("env", b"", b"/usr/bin/env: 'python3.9': No such file or directory\n"),
    "exec": make_unfit("exec", b"", b"/bin/sh: 1: exec: /etc/passwd: Permission denied\n"),
    "home": make_unfit(
        "home",
        b"",
        b"",
        "FAIL cannot write its state folder: [Errno 13] Permission denied: '/home/u/.local'",
    ),
    "open": make_unfit(
        "open", b"", b"", "FAIL /home/u/.local is not ours, or others may write there: chmod 700 it"
    ),
}


@dataclass
class Link:
    """A host that is found so when it is looked at, or, with `early`, when it is connected to."""

    host: HostSpec
    early: bool
    closed: int = field(default=0)
    gpus: int = 0
    looked: float | None = 1.0
    """When it was looked at; None: what is known of it is remembered, and it has one GPU more by now."""

    def dial(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def connect(self) -> Link:
        error = HOSTS.get(self.host.name)
        if error is not None and (self.early or isinstance(error, Unreachable)):
            raise error
        return self

    def read_fit_facts(self, _session: object) -> tuple[dict[str, Any], None]:
        error = HOSTS.get(self.host.name)
        if error is not None:
            raise error
        return self.look(), None

    def look(self) -> dict[str, Any]:
        return {"gpus": [{"index": index, "uuid": f"GPU-{index}"} for index in range(self.gpus)]}

    def read_facts(self, _session: object, *, fresh: bool) -> dict[str, Any]:
        assert fresh
        self.gpus, self.looked = self.gpus + 1, 1.0
        return self.look()


def reach(names: Sequence[str], *, early: bool, local: str | None = None) -> Reached:
    links = [Link(HostSpec(name, device="cpu"), early) for name in (*names, *([local] if local else []))]
    given = [cast("HostLink", link) for link in links]
    return reach_first(given[: len(names)], given[-1] if local else None)


@pytest.mark.parametrize("early", [False, True])
def test_a_host_without_room_is_passed_over_like_an_unfit_one(*, early: bool) -> None:
    reached = reach(["full", "unfit", "fit"], early=early)

    assert reached.link.host.name == "fit"
    assert reached.reasons == ["full: 5 bytes are free", "unfit: uv is not installed there"]


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize(
    ("names", "code", "hint", "have"),
    [
        ("full", 14, "free space there", 5),
        ("full small absent", 14, "free space there", 5),
        ("full unfit", 13, "install.sh", None),
        ("unfit full absent", 13, "install.sh", None),
        ("absent", 10, "--no-fallback", None),
        ("env", 13, "try `ssh env python3 --version`", None),
        ("exec", 13, "try `ssh exec python3 --version`", None),
        ("home", 13, "our program lives in ~/.local/state/remote-train there", None),
        ("open", 13, "our program lives in ~/.local/state/remote-train there", None),
        ("torchless absent full home exec", 13, "our program lives in", None),
        ("torchless absent", 13, "install torch there: `/p -m pip install torch`", None),
    ],
)
def test_it_ends_with_what_all_of_them_lack(
    names: str, code: int, hint: str, have: int | None, *, early: bool
) -> None:
    with pytest.raises(RemoteTrainError) as caught:
        reach(names.split(), early=early)

    assert caught.value.exit_code == code
    assert hint in str(caught.value.hint)
    assert caught.value.facts.get("have") == have
    assert all(f"{name}: " in caught.value.message for name in names.split())


def test_a_host_without_room_is_no_reason_to_train_here() -> None:
    with pytest.raises(HostSpace):
        reach(["absent", "full"], early=False, local="fit")
    assert reach(["absent"], early=False, local="fit").fell_back
    with pytest.raises(HostSpace, match="absent: no answer"):
        reach(["absent"], early=False, local="full")


@pytest.mark.parametrize(
    ("names", "local", "code", "message"),
    [
        ("absent", "torchless", 13, "absent: no answer\ntorchless: /p (Python 3.11) has no torch"),
        ("absent", "full", 14, "absent: no answer\nfull: 5 bytes are free"),
        ("absent", "gone", 10, "absent: no answer\ngone: no answer"),
        ("", "gone", 10, "gone: no answer"),
    ],
)
def test_why_no_host_was_reached_comes_before_the_fault_of_this_machine(
    names: str, local: str, code: int, message: str
) -> None:
    with pytest.raises(RemoteTrainError) as caught:
        reach(names.split(), early=False, local=local)

    assert (caught.value.exit_code, caught.value.message) == (code, message)
    assert "--no-fallback" not in str(caught.value.hint)


def test_nobody_is_asked_again_after_a_connection_that_was_lost_before_it_stood(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A jump host may have asked for a code already when the host behind it closed."""
    asked: list[Any] = []

    def lose(transport: Any, *_: Any) -> Any:
        asked.append(is_asked(transport))
        raise ConnectionLost("closed before its banner")

    monkeypatch.setattr("remote_train.reach.open_session", lose)

    def make(link: HostLink, *_: Any) -> Any:
        return link._ask

    monkeypatch.setattr(HostLink, "_make_openssh", make)
    target = SimpleNamespace(
        nearest=SimpleNamespace(proxy_commands=("ssh gate",)), need="ProxyCommand", jumps=()
    )
    monkeypatch.setattr("remote_train.reach.read_target", lambda _host: target)
    person = Keyholder(lambda _question: False, lambda _question, _echo: "a code")
    link = HostLink(HostSpec("box", ("127.0.0.1",)), cast("Any", None), person, [])
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            link.connect()
    assert asked == [True, False]


def reach_gpus(*counts: int, gpus: str = "1", env: dict[str, str] | None = None) -> Reached:
    links = [Link(HostSpec(f"has-{count}", device="cuda"), early=False, gpus=count) for count in counts]
    job = Job(ProjectSpec("p"), "/", "", "train.py", None, (), None, gpus, "share", env=env or {})
    try:
        return reach_first([cast("HostLink", link) for link in links], None, job)
    finally:
        assert links[0].closed == 2  # as a link, and as the session of a host that is not taken


@pytest.mark.parametrize(
    ("gpus", "env", "said"),
    [
        ("3", {}, "3 GPUs are asked for and the host has 2"),
        ("2,", {}, "--gpus 2,: no such GPU: 2"),
        ("1", {"CUDA_VISIBLE_DEVICES": "2"}, "CUDA_VISIBLE_DEVICES=2: no such GPU: 2"),
    ],
)
def test_a_host_without_the_gpus_that_are_wanted_is_passed_over(
    gpus: str, env: dict[str, str], said: str
) -> None:
    reached = reach_gpus(2, 3, gpus=gpus, env=env)
    assert reached.link.host.name == "has-3"
    assert reached.reasons == [f"has-2: {said}"]

    with pytest.raises(HostUnfit) as caught:
        reach_gpus(2, 1, gpus=gpus, env=env)
    assert caught.value.message.startswith(f"has-2: {said}\nhas-1: ")
    assert caught.value.hint is not None
    assert "device" not in caught.value.hint


@pytest.mark.parametrize("gpus", ["one", "0,0", ",", "-1", "0"])
def test_gpus_that_no_host_could_have_are_a_usage_error(gpus: str) -> None:
    with pytest.raises(UsageError):
        reach_gpus(2, 3, gpus=gpus)


def test_gpus_that_are_remembered_are_counted_again_before_a_host_is_passed_over() -> None:
    grown = Link(HostSpec("grown", device="cuda"), early=False, gpus=1, looked=None)
    links = [grown, Link(HostSpec("other"), early=False)]
    job = Job(ProjectSpec("p"), "/", "", "train.py", None, (), None, "2", "share")
    reached = reach_first([cast("HostLink", link) for link in links], None, job)

    assert reached.link.host.name == "grown"
    assert len(reached.facts["gpus"]) == 2
