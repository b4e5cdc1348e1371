"""What `doctor` asks of a host: its surroundings from a tree, what the link carries, and what is said of it all."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_train.answers import check_answer
from remote_train.config.host_spec import HostSpec
from remote_train.doctor import choose_next, judge_banner, measure_down, measure_up, read_clock, resolve
from remote_train.errors import ProtocolError
from remote_train.findings import Chart, judge, list_facts, list_surroundings, render_size
from remote_train.host.examining import Burst, find_rate
from remote_train.host.surroundings import lingers, read_kill_setting, read_memory, read_surroundings
from remote_train.preflight import find_unfit
from remote_train.show.doctor import render_examinations
from tests.host.account_kit import account

if TYPE_CHECKING:
    from pathlib import Path

    from tests.host.account_kit import Account

__all__ = ["account"]


def write(root: Path, **files: str) -> str:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


WSL = {"proc__version": "Linux version 5.15.153.1-microsoft-standard-WSL2", "dev__dxg": ""}
POD = {"proc__self__cgroup": "11:cpu:/kubepods/burstable/pod1/abc\n"}
LAPTOP = {"sys__class__dmi__id__chassis_type": "10\n", "dev__nvidia0": "", "dev__nvidiactl": ""}
VIRTUAL = {"proc__cpuinfo": "processor: 0\nflags\t\t: fpu hypervisor sse\n"}


@pytest.mark.parametrize(
    ("files", "true"),
    [
        ({}, {}),
        (WSL, {"wsl": True, "dxg": True}),
        (POD, {"container": "kubernetes"}),
        ({".dockerenv": "", **VIRTUAL}, {"container": "docker", "virtual": True}),
        ({"run__.containerenv": ""}, {"container": "podman"}),
        (LAPTOP, {"laptop": True, "nvidia_nodes": 1}),
    ],
)
def test_surroundings(tmp_path: Path, files: dict[str, str], true: dict[str, Any]) -> None:
    found = read_surroundings(write(tmp_path, **files))

    plain = {"container": None, "nvidia_nodes": 0}
    plain |= dict.fromkeys(("wsl", "virtual", "laptop", "dxg", "systemd"), False)
    assert found == {**plain, **true}


def test_what_logind_does_and_how_much_memory_there_is(tmp_path: Path) -> None:
    root = write(tmp_path, proc__meminfo="MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n")
    assert read_memory(root) == {"total": 2 << 20, "available": 1 << 20}
    assert read_kill_setting(root) is None
    write(tmp_path, **{"etc__systemd__logind.conf": "[Login]\n#KillUserProcesses=no\n"})
    assert read_kill_setting(root) is None
    write(tmp_path, **{"etc__systemd__logind.conf.d__50-kill.conf": "[Login]\nKillUserProcesses = yes\n"})
    assert read_kill_setting(root) is True
    write(tmp_path, **{"etc__systemd__logind.conf.d__60-keep.conf": "KillUserProcesses=no\n"})
    assert read_kill_setting(root) is False
    assert not lingers(root, "me")
    write(tmp_path, var__lib__systemd__linger__me="")
    assert lingers(root, "me")


@pytest.mark.parametrize(
    ("marks", "rate"),
    [
        ([], None),
        ([(1.0, 100)], None),
        ([(1.0, 100), (1.0, 200)], None),
        ([(0.0, 0), (1.0, 10), (2.0, 1000), (3.0, 1990)], 990.0),  # a slow start is left out
        ([(0.0, 0), (1.0, 990), (2.0, 1000)], 500.0),  # nearly all came before: the second half says nothing
    ],
)
def test_a_rate_from_moments(marks: list[tuple[float, int]], rate: float | None) -> None:
    assert find_rate(marks) == rate


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 1 << 40)), max_size=20))
def test_no_moments_raise(marks: list[tuple[float, int]]) -> None:
    ordered = sorted(marks)
    rate = find_rate(ordered)
    assert rate is None or isinstance(rate, float)


def test_a_burst_ends_by_its_bytes_and_by_its_time() -> None:
    few = Burst(1, 10.0, 1000)
    assert len(few.produce(600)) + len(few.produce(600)) == 1000 + 2 * 9
    assert few.wants_turn()
    few.produce(600)
    assert (few.done, few.wants_turn()) == (True, False)
    late = Burst(1, 1e-9, 1000)
    while time.monotonic() < late._until:
        pass
    late.produce(600)
    assert late.done


def test_clock_and_both_directions_over_a_session(account: Account) -> None:
    session = account.connect()
    trips, offset = read_clock(session)
    down = measure_down(session)
    up = measure_up(session, down)

    assert min(trips) > 0
    assert abs(offset) < 1
    assert down
    assert down > 1e6
    assert up
    assert up > 1e6
    me = session.request("examine", pids=[os.getpid(), 2**22 + 1])
    assert me["users"][str(os.getpid())]["process"]
    unseen = me["users"][str(2**22 + 1)]
    assert (unseen["account"], unseen["process"]) == (None, None)
    with pytest.raises(ProtocolError, match="burst"):
        session.request("burst", stream=session.new_stream(), seconds=1e9, bytes=1)


@pytest.mark.parametrize(
    ("op", "answer"),
    [
        ("examine", {"surroundings": {"container": 7}}),
        ("examine", {"surroundings": {}, "users": {"1": {"account": ["x"]}}}),
        ("examine", {}),
        ("clock", {"time": "now"}),
        ("clock", {"time": -1}),
        ("sink", {"bytes": 1, "rate": "fast"}),
    ],
)
def test_what_is_no_answer_is_refused(op: str, answer: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=f"box answered `{op}`"):
        check_answer("box", op, {}, answer)


@pytest.mark.parametrize(
    ("banner", "words"),
    [
        ("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u2", "CVE-2024-6387"),
        ("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3", None),
        ("SSH-2.0-OpenSSH_8.9p1 Ubuntu-3ubuntu0.7", "CVE-2024-6387"),
        ("SSH-2.0-OpenSSH_8.9p1 Ubuntu-3ubuntu0.13", None),
        ("SSH-2.0-OpenSSH_9.8", None),
        ("SSH-2.0-OpenSSH_8.4p1", None),
        ("SSH-2.0-OpenSSH_6.6.1", "before 2016"),
        ("SSH-2.0-dropbear_2022.83", None),
    ],
)
def test_what_is_known_against_a_version(banner: str, words: str | None) -> None:
    note = judge_banner(banner)
    assert note is None if words is None else words in str(note)


def test_a_name_that_takes_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()

    def wait(*_: object, **__: object) -> list[Any]:
        going_on.wait()
        return []

    monkeypatch.setattr("remote_train.doctor.socket.getaddrinfo", wait)
    monkeypatch.setattr("remote_train.doctor.RESOLVE_SECONDS", 0.05)
    found = resolve(["box", "other"], 22)
    going_on.set()

    assert {why for _, why, _ in found.values()} == {"name not resolved within 0.05 s"}


GPU = {"index": 0, "uuid": "GPU-1", "name": "NVIDIA GeForce RTX 4070 Ti", "memory_bytes": 12_000_000_000}
BUSY = {**GPU, "processes": [{"pid": 7, "compute": True}, {"pid": 8, "compute": False}]}
IGPU = {"vendor": "Intel", "name": "UHD Graphics 770", "kind": "integrated", "driver": "i915"}
FACTS: dict[str, Any] = {
    "os": "Linux",
    "kernel": "6.1",
    "machine": "x86_64",
    "python": {"path": "python3", "version": "3.12.1", "torch": "2.9.0", "torch_cuda": "12.8"},
    "gpus": [BUSY],
    "driver": "570.86.15",
    "gpu_error": None,
    "adapters": [IGPU],
    "cpu": {"model": "i7", "physical": 14, "performance": 6, "logical": 20, "usable": 6},
}
AROUND: dict[str, Any] = {
    "surroundings": {"systemd": True},
    "shell": "/bin/zsh",
    "kills": True,
    "lingers": False,
    "users": {"7": {"account": "bob", "process": "python\x1b[2J"}},
}


def examine(
    facts: dict[str, Any], around: dict[str, Any], noise: int = 0, **keys: Any
) -> tuple[Chart, dict[str, Any]]:
    chart = Chart("box")
    chart.facts = facts
    list_surroundings(chart, facts, around, noise, local=False)
    list_facts(chart, facts, around, HostSpec(name="box", **keys))
    return chart, {row["step"]: row for row in chart.steps}


def test_who_uses_the_gpus_and_what_a_logout_does() -> None:
    chart, seen = examine(FACTS, AROUND, 12)

    assert seen["logout"]["state"] == "warn"
    assert "loginctl enable-linger" in seen["logout"]["lines"][0]
    assert "12 bytes" in seen["shell"]["lines"][0]
    gpus = seen["gpus"]["lines"]
    assert gpus[0].endswith("12 GB, used by python\x1b[2J of bob (pid 7)")
    assert gpus[1] == "not for CUDA: Intel UHD Graphics 770 (integrated, driver i915)"
    assert seen["cpu"]["lines"] == ["i7, 6 P + 8 E cores, 20 threads"]
    verdict, command = judge(HostSpec(name="box"), FACTS, None), choose_next(HostSpec(name="box"), None, [])
    assert "every GPU of it is in use" in verdict
    assert command == "remote-train run --host box SCRIPT"
    shown = render_examinations([chart.as_row(verdict=verdict, next=command, exit_code=0)], 60)
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 60


@pytest.mark.parametrize(
    ("facts", "around", "following"),
    [
        ({"adapters": [IGPU]}, {}, 'a host without a GPU trains with `device = "cpu"` in hosts.toml'),
        (
            {"adapters": [{"vendor": "NVIDIA", "kind": "discrete"}]},
            {},
            "install or load NVIDIA's driver there, until `nvidia-smi` lists the GPU",
        ),
    ],
)
def test_what_to_do_about_a_host_without_cuda(
    facts: dict[str, Any], around: dict[str, Any], following: str
) -> None:
    host, changed = HostSpec(name="box"), {**FACTS, "gpus": [], "gpu_error": "no NVIDIA driver", **facts}
    _, seen = examine(changed, {**AROUND, **around})

    assert seen["driver"]["state"] == "fail"
    assert choose_next(host, find_unfit(host, changed), []).startswith(following)


def test_a_driver_too_old_for_torch_is_the_step_that_fails_and_what_is_to_be_mended() -> None:
    facts = {**FACTS, "driver": "535.54.03", "driver_cuda": "12.2"}
    facts["python"] = {**FACTS["python"], "torch_cuda": "13.0"}
    host, setup = HostSpec(name="box"), ("module load cuda",)
    why = find_unfit(host, facts)

    assert examine(facts, AROUND)[1]["driver"]["state"] == "fail"
    assert choose_next(host, why, []).startswith("update the driver")
    assert judge(host, facts, why).endswith("or a torch built for CUDA 12")
    assert examine(facts, AROUND, setup=setup)[1]["driver"]["state"] == "warn"


def test_a_conda_environment_that_is_not_there_is_no_place_for_pip() -> None:
    host = HostSpec(name="box", conda="torch")
    error = "there is no conda environment torch: there are base"
    facts = {**FACTS, "python": {"path": "conda:torch", "version": None, "torch": None, "error": error}}
    why = find_unfit(host, facts)

    assert choose_next(host, why, ["/b/bin/python"]).startswith("see `conda` in hosts.toml")


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ({"container": "docker"}, "--gpus all"),
        ({"wsl": True, "dxg": False}, "WSL without /dev/dxg"),
    ],
)
def test_why_a_container_has_no_gpu(place: dict[str, Any], words: str) -> None:
    _, seen = examine({**FACTS, "gpus": [], "gpu_error": "none"}, {**AROUND, "surroundings": place})

    assert words in seen["driver"]["lines"][-1]


@given(st.floats(0, 1e18))
def test_every_size_has_a_unit(count: float) -> None:
    assert render_size(count).split()[1] in {"bytes", "KB", "MB", "GB", "TB"}
