"""Whether a package has room on a host, by what is remembered and by a second look; and the line that mends an environment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest

from remote_train.config.host_spec import HostSpec
from remote_train.errors import HostSpace
from remote_train.fitness import check_room, unfit_hint
from remote_train.reach import HostLink, Reached

if TYPE_CHECKING:
    from remote_train.session import Session


@dataclass
class Link:
    """A host that has so much free when it is looked at."""

    free: int | None
    looked: float | None = None
    looks: int = 0
    host: HostSpec = field(default_factory=lambda: HostSpec("box"))

    def read_facts(self, _session: object, *, fresh: bool) -> dict[str, Any]:
        self.looks += fresh
        return {"disk_free_bytes": self.free}


def reach(link: Link, known: int | None) -> Reached:
    return Reached(cast("HostLink", link), cast("Session", None), {"disk_free_bytes": known})


@pytest.mark.parametrize("known", [100, 101, None])
def test_room_that_is_known_costs_no_look(known: int | None) -> None:
    link = Link(0)
    check_room(reach(link, known), 100)

    assert link.looks == 0


def test_what_is_remembered_is_looked_at_again_before_it_counts() -> None:
    link = Link(100)
    reached = reach(link, 99)
    check_room(reached, 100)

    assert link.looks == 1
    assert reached.facts == {"disk_free_bytes": 100}


@pytest.mark.parametrize("looked", [None, 1.0])
def test_no_room_is_said_before_anything_is_sent(looked: float | None) -> None:
    link = Link(5, looked)
    with pytest.raises(HostSpace) as caught:
        check_room(reach(link, 5), 1_000_000)

    assert caught.value.exit_code == 14
    assert "box: the package has 1,000,000 bytes, and 5 are free" in caught.value.message
    assert link.looks == (looked is None)


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (
            "box: /p (Python 3.11) has no torch; torch was found in /a/bin/python, /b",
            'python = "/a/bin/python"',
        ),
        ("box: /p (Python 3.11) has no torch", "`/p -m pip install torch`"),
        ("box: /p (Python 3.11) has no torch; torch was found in /b", "in place of a `venv` or `conda`"),
        ("box: there is no conda environment x: there are base", "`conda`"),
        ("box: torch 2.9 in /p is built without CUDA", "another environment"),
        ("box: the environment that uv made for this project (Python 3.11) has no torch", "uv add torch"),
        ("box: uv is not installed there, or not in PATH", "install.sh"),
        ("box: `uv sync` failed there: no solution", "`uv sync` in the project"),
        (
            "box: torch 2.9 is built for CUDA 13.0, and its NVIDIA driver 535.54.03 runs CUDA 12.2 at most",
            "update the driver",
        ),
        ("box: no CUDA device: none", 'device = "cpu"'),
        ("box: no CUDA device: libcuda.so.1: No such file or directory", 'device = "cpu"'),
        (
            "box: no CUDA device: NVML: driver/library version mismatch; on the bus: NVIDIA",
            "restart that machine",
        ),
        ("box: no CUDA device: no NVIDIA driver; on the bus: NVIDIA AD104", "`nvidia-smi` lists the GPU"),
    ],
)
def test_the_next_step_is_a_line_to_type(why: str, words: str) -> None:
    assert words in unfit_hint([why])


def test_on_this_machine_no_host_is_to_be_written_down() -> None:
    hint = unfit_hint(["local: /p q (Python 3.11) has no torch; torch was found in /b"], here=True)

    assert hint == "install torch here: `/p q -m pip install torch`, or activate an environment that has it"
