"""Which of several hosts is taken, and with which error it ends where none will do: unreachable, unfit, or without room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.errors import HostSpace, HostUnfit, RemoteTrainError, Unreachable
from remote_train.reach import HostLink, Reached, reach_first

if TYPE_CHECKING:
    from collections.abc import Sequence

HOSTS: dict[str, RemoteTrainError | None] = {
    "fit": None,
    "full": HostSpace("full: 5 bytes are free", hint="free space there", have=5),
    "small": HostSpace("small: 6 bytes are free", hint="as above", have=6),
    "unfit": HostUnfit("unfit: uv is not installed there"),
    "absent": Unreachable("absent: no answer"),
}


@dataclass
class Link:
    """A host that is found so when it is looked at, or, with `early`, when it is connected to."""

    host: HostSpec
    early: bool
    closed: int = field(default=0)

    def dial(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1

    def connect(self) -> Link:
        error = HOSTS[self.host.name]
        if error is not None and (self.early or isinstance(error, Unreachable)):
            raise error
        return self

    def read_fit_facts(self, _session: object) -> tuple[dict[str, Any], None]:
        error = HOSTS[self.host.name]
        if error is not None:
            raise error
        return {}, None


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
