"""Threads and affinity on hybrid processors: decided together, or not at all."""

from __future__ import annotations

from typing import Any

import pytest

from remote_train.affinity import choose_affinity
from remote_train.config.host_spec import make_local
from remote_train.config.project_spec import ProjectSpec
from remote_train.plan import Job, Plan, make_plan

ALDER = {  # i7-12700H: six performance cores with two threads each, eight efficiency cores
    "model": "12th Gen Intel(R) Core(TM) i7-12700H",
    "physical": 14,
    "performance": 6,
    "logical": 20,
    "usable": 6,
    "performance_cpus": [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]],
    "narrowed": False,
    "quota": None,
}
PLAIN = {**ALDER, "physical": 6, "logical": 12}
UNKNOWN = {key: ALDER[key] for key in ("model", "physical", "performance", "logical", "usable")}
RK3588 = {**ALDER, "physical": 8, "performance": 4, "usable": 4, "performance_cpus": [[4], [5], [6], [7]]}


def plan(cpu: dict[str, Any], device: str = "cpu", words: dict[str, str] | None = None, **job: Any) -> Plan:
    python = {"path": "/usr/bin/python3", "version": "3.11.2", "torch": "2.4.0", "torch_cuda": "12.4"}
    gpu = {"index": 0, "uuid": "GPU-aa", "name": "NVIDIA GeForce RTX 4090"}
    facts = {"python": python, "cpu": cpu, "gpus": [gpu], "thread_env": words or {}}
    fields: dict[str, Any] = {"project": ProjectSpec(project="p"), "root": "/p", "cwd": "", "module": None}
    host = make_local() if device == "cpu" else make_local().__class__(name="box")
    return make_plan(Job(**fields, script="t.py", args=(), family=None, **job), host, facts, "p", ["t.py"])


def test_one_process_gets_the_performance_cores_and_a_thread_for_each() -> None:
    one = plan(ALDER)

    assert one.affinity == (tuple(range(12)),)
    assert one.default_env["OMP_NUM_THREADS"] == "6"
    assert one.notes == ("6 performance cores of 14, threads and affinity set to them",)


@pytest.mark.parametrize(
    ("processes", "threads", "sets"),
    [
        (2, "3", ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10, 11))),
        (4, "1", ((0, 1), (2, 3), (4, 5), (6, 7))),
        (7, "1", ()),
    ],
)
def test_processes_share_the_cores_out(
    processes: int, threads: str, sets: tuple[tuple[int, ...], ...]
) -> None:
    """Whole cores, none of them twice, as many as each process has threads."""
    shared = plan(ALDER, processes=processes)

    assert (shared.default_env["OMP_NUM_THREADS"], shared.affinity) == (threads, sets)
    assert bool(shared.notes) == bool(sets)


@pytest.mark.parametrize(
    ("cpu", "words", "job", "device"),
    [
        (PLAIN, {}, {}, "cpu"),
        (UNKNOWN, {}, {}, "cpu"),
        (ALDER, {}, {}, "cuda"),
        ({**ALDER, "narrowed": True, "performance_cpus": [[2, 3]], "usable": 1}, {}, {}, "cpu"),
        ({**ALDER, "quota": 4.0, "usable": 4}, {}, {}, "cpu"),
        (ALDER, {"OMP_NUM_THREADS": "4"}, {}, "cpu"),
        (ALDER, {"MKL_NUM_THREADS": "4"}, {}, "cpu"),
        (ALDER, {"KMP_AFFINITY": "granularity=fine,compact"}, {}, "cpu"),
        (ALDER, {}, {"env": {"OMP_NUM_THREADS": "20"}}, "cpu"),
    ],
    ids=["one kind of core", "old facts", "cuda", "taskset", "quota", "OMP", "MKL", "KMP", "--env"],
)
def test_it_is_left_alone(
    cpu: dict[str, Any], words: dict[str, str], job: dict[str, Any], device: str
) -> None:
    left = plan(cpu, device, words, **job)

    assert (left.affinity, left.notes) == ((), ())
    assert "cpus" not in (left.measure or {})


def test_a_quota_above_the_cores_and_an_empty_word_do_not_matter() -> None:
    assert choose_affinity({**ALDER, "quota": 6.0}, {"OMP_NUM_THREADS": ""}, 1) == (tuple(range(12)),)
    assert choose_affinity(RK3588, {}, 2) == ((4, 5), (6, 7))


def test_the_peak_is_measured_on_the_cpus_that_train() -> None:
    """Four processes with a core each use four cores of six: so does the measurement."""
    measure = plan(ALDER, processes=4).measure

    assert measure is not None
    assert (measure["threads"], measure["cpus"]) == (4, list(range(8)))
