"""The plan: values in, one Plan out. Tables of what is decided."""

from __future__ import annotations

import json
from typing import Any

import pytest

from remote_train.config.families import Family
from remote_train.config.host_spec import HostSpec, make_local
from remote_train.config.project_spec import ProjectSpec
from remote_train.errors import ConfigError, HostUnfit, PackageError, UsageError
from remote_train.plan import Job, make_argv, make_plan, make_threads
from remote_train.preflight import find_unfit
from remote_train.wanted import parse_gpus

GPUS = [
    {
        "index": 0,
        "uuid": "GPU-aa",
        "name": "NVIDIA GeForce RTX 4090",
        "sm_count": 128,
        "clock_mhz": 2520,
        "capability": [8, 9],
        "memory_bytes": 1,
    },
    {
        "index": 1,
        "uuid": "GPU-bb",
        "name": "NVIDIA GeForce RTX 4090",
        "sm_count": 128,
        "clock_mhz": 2520,
        "capability": [8, 9],
        "memory_bytes": 1,
    },
]
PATHS = ["train.py", "sub/train.py", "other.py"]
NANO = Family(
    name="nanoGPT",
    device_args={"cpu": ("--device=cpu", "--compile=False"), "cuda": ()},
    checkpoints=("out/ckpt.pt",),
    resume_args=(),
    include=(),
)


def facts(**changes: Any) -> dict[str, Any]:
    python = {
        "path": "/usr/bin/python3",
        "version": "3.11.2",
        "torch": "2.4.0",
        "torch_cuda": "12.4",
        "error": None,
    }
    cpu = {"model": "a CPU", "physical": 8, "performance": 8, "logical": 16, "usable": 8}
    return {"python": python, "cpu": cpu, "gpus": GPUS, "gpu_error": None, "fingerprint": "x", **changes}


def spec(**changes: Any) -> ProjectSpec:
    return ProjectSpec(**{"project": "project", **changes})


def job(**changes: Any) -> Job:
    fields: dict[str, Any] = {
        "project": spec(),
        "root": "/project",
        "cwd": "",
        "script": "train.py",
        "module": None,
        "args": (),
        "family": None,
    }
    return Job(**{**fields, **changes})


def host(**changes: Any) -> HostSpec:
    return HostSpec(**{"name": "box", **changes})


@pytest.mark.parametrize(
    ("changes", "device", "expected"),
    [
        ({}, "cuda", ("train.py",)),
        ({"args": ("--a", "b")}, "cuda", ("train.py", "--a", "b")),
        ({"script": None, "module": "pkg.train", "args": ("x",)}, "cpu", ("-m", "pkg.train", "x")),
        (
            {"script": None, "project": spec(script="train.py", args=("c.py",)), "args": ("--lr=1",)},
            "cpu",
            ("train.py", "c.py", "--lr=1"),
        ),
        (
            {"script": "train.py", "project": spec(script="train.py", args=("c.py",)), "args": ("--lr=1",)},
            "cpu",
            ("train.py", "c.py", "--lr=1"),
        ),
        (
            {"script": "other.py", "project": spec(script="train.py", args=("c.py",)), "args": ("--lr=1",)},
            "cpu",
            ("other.py", "--lr=1"),
        ),
        ({"script": None, "project": spec(module="pkg", args=("a",))}, "cpu", ("-m", "pkg", "a")),
        ({"project": spec(device_args={"cpu": ("--device=cpu",)})}, "cpu", ("train.py", "--device=cpu")),
        ({"project": spec(device_args={"cpu": ("--device=cpu",)})}, "cuda", ("train.py",)),
        (
            {"project": spec(device_args={"cpu": ("--device=cpu", "-c", "0")}), "args": ("--device=mps",)},
            "cpu",
            ("train.py", "--device=mps", "-c", "0"),
        ),
        (
            {"project": spec(device_args={"cpu": ("--device", "cpu", "--x=1")}), "args": ("--device=mps",)},
            "cpu",
            ("train.py", "--device=mps", "--x=1"),
        ),
        ({"family": NANO}, "cpu", ("train.py", "--device=cpu", "--compile=False")),
        ({"family": NANO}, "cuda", ("train.py",)),
        (
            {"family": NANO, "args": ("--compile=True",)},
            "cpu",
            ("train.py", "--compile=True", "--device=cpu"),
        ),
        ({"family": NANO, "project": spec(device_args={"cpu": ()})}, "cpu", ("train.py",)),
    ],
)
def test_the_arguments_of_the_users_python(
    changes: dict[str, Any], device: str, expected: tuple[str, ...]
) -> None:
    assert make_argv(job(**changes), device, PATHS)[0] == expected


def test_arguments_that_nobody_wrote_are_noted() -> None:
    notes = make_argv(job(family=NANO), "cpu", PATHS)[1]
    assert len(notes) == 1
    assert "--device=cpu --compile=False" in notes[0]
    assert make_argv(job(family=NANO, project=spec(device_args={"cpu": ("--x",)})), "cpu", PATHS)[1] == []


def test_without_a_script_there_is_nothing_to_run() -> None:
    with pytest.raises(UsageError, match="no script"):
        make_argv(job(script=None), "cpu", PATHS)


@pytest.mark.parametrize(
    ("script", "cwd", "error"),
    [
        ("train.py", "", None),
        ("./train.py", "", None),
        ("train.py", "sub", None),
        ("../train.py", "sub", None),
        ("nowhere.py", "", PackageError),
        ("train.py", "elsewhere", PackageError),
        ("../train.py", "", UsageError),
        ("/project/train.py", "", UsageError),
        ("sub/../../x.py", "", UsageError),
    ],
)
def test_the_script_must_travel(script: str, cwd: str, error: type[Exception] | None) -> None:
    if error is None:
        assert make_argv(job(script=script, cwd=cwd), "cpu", PATHS)[0] == (script,)
        return
    with pytest.raises(error):
        make_argv(job(script=script, cwd=cwd), "cpu", PATHS)


@pytest.mark.parametrize(
    ("changes", "device", "launcher", "processes"),
    [
        ({}, "cuda", "torchrun", 1),
        ({"gpus": "2"}, "cuda", "torchrun", 2),
        ({"gpus": "all"}, "cuda", "torchrun", 2),
        ({"gpus": "0,1"}, "cuda", "torchrun", 2),
        ({"gpus": "1,"}, "cuda", "torchrun", 1),
        ({"gpus": "2", "processes": 1}, "cuda", "torchrun", 1),
        ({"launcher": "python"}, "cuda", "python", 1),
        ({}, "cpu", "python", 1),
        ({"gpus": "2"}, "cpu", "python", 1),
        ({"processes": 2}, "cpu", "torchrun", 2),
        ({"launcher": "torchrun"}, "cpu", "torchrun", 1),
    ],
)
def test_launcher_and_processes(changes: dict[str, Any], device: Any, launcher: str, processes: int) -> None:
    plan = make_plan(job(**changes), host(device=device), facts(), "p", PATHS)
    assert (plan.launcher, plan.processes) == (launcher, processes)


def test_plain_python_is_one_process() -> None:
    with pytest.raises(UsageError, match="one process"):
        make_plan(job(launcher="python", processes=2), host(device="cpu"), facts(), "p", PATHS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", {"count": 1}),
        ("2", {"count": 2}),
        ("all", {"count": 2}),
        ("0,", {"ids": ["0"]}),
        ("1, 0", {"ids": ["1", "0"]}),
        ("GPU-bb", {"ids": ["GPU-bb"]}),
        ("GPU-bb,0", {"ids": ["GPU-bb", "0"]}),
    ],
)
def test_gpus(text: str, expected: dict[str, Any]) -> None:
    assert parse_gpus(text, facts()) == expected


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("3", HostUnfit),
        ("0", UsageError),
        ("2,", UsageError),
        ("GPU-cc", UsageError),
        ("", UsageError),
        (",", UsageError),
        ("-1", UsageError),
        ("1.5", UsageError),
        ("\u00b2", UsageError),
    ],
)
def test_gpus_that_are_not_there(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_gpus(text, facts())


@pytest.mark.parametrize(
    ("visible", "text", "expected", "words"),
    [
        ("1", "1", {"count": 1, "among": ["GPU-bb"]}, "GPU-bb"),
        ("GPU-b", "all", {"count": 1, "among": ["GPU-bb"]}, "GPU-bb"),
        ("1,0", "2", {"count": 2, "among": ["GPU-bb", "GPU-aa"]}, "GPU-bb, GPU-aa"),
        ("1,0", "1", {"count": 1, "among": ["GPU-bb", "GPU-aa"]}, "1 of GPU-bb, GPU-aa"),
        ("1", "0,", {"ids": ["0"]}, "0"),
        ("", "0,", {"ids": ["0"]}, "0"),
    ],
)
def test_a_users_word_on_which_gpus_are_visible_counts(
    visible: str, text: str, expected: dict[str, Any], words: str
) -> None:
    for where in ("job", "host", "login"):
        env = {"env": {"CUDA_VISIBLE_DEVICES": visible}}
        login = {"thread_env": env["env"]} if where == "login" else {}
        of_host = host(device="cuda", **(env if where == "host" else {}))
        of_job = job(gpus=text, **(env if where == "job" else {}))
        plan = make_plan(of_job, of_host, facts(**login), "p", PATHS)
        assert plan.gpus == expected
        assert f"CUDA_VISIBLE_DEVICES={visible} on box: the run gets {words}" in plan.notes


@pytest.mark.parametrize(
    ("visible", "text", "error"),
    [
        ("", "1", HostUnfit),
        ("-1", "1", HostUnfit),
        ("1", "2", HostUnfit),
        ("2", "1", UsageError),
        ("1,1", "1", UsageError),
    ],
)
def test_what_leaves_no_such_gpu_is_refused(visible: str, text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="CUDA_VISIBLE_DEVICES"):
        parse_gpus(text, facts(), visible)


def test_the_same_gpu_twice_is_one_gpu_or_an_error() -> None:
    """Two ranks on one card would be a surprise of another kind."""
    with pytest.raises(UsageError):
        parse_gpus("0,GPU-aa", facts())


def test_an_index_of_a_divided_card_is_not_one_gpu() -> None:
    parts = [{"index": 0, "uuid": "MIG-a"}, {"index": 0, "uuid": "MIG-b"}]
    with pytest.raises(UsageError, match="divided") as error:
        parse_gpus("0,", {"gpus": parts})
    assert error.value.hint == "name its parts by UUID: MIG-a, MIG-b"
    assert parse_gpus("MIG-b,", {"gpus": parts}) == {"ids": ["MIG-b"]}


@pytest.mark.parametrize(
    ("changes", "host_changes", "more_facts", "threads", "default"),
    [
        ({}, {"device": "cpu"}, {}, 8, "8"),
        ({"processes": 2}, {"device": "cpu"}, {}, 4, "4"),
        ({"processes": 99}, {"device": "cpu"}, {}, 1, "1"),
        ({"env": {"OMP_NUM_THREADS": "3"}}, {"device": "cpu"}, {}, 3, "8"),
        ({}, {"device": "cpu", "env": {"OMP_NUM_THREADS": "5"}}, {}, 5, "8"),
        ({"env": {"OMP_NUM_THREADS": "3"}}, {"device": "cpu", "env": {"OMP_NUM_THREADS": "5"}}, {}, 3, "8"),
        ({}, {"device": "cpu"}, {"thread_env": {"OMP_NUM_THREADS": "6"}}, 6, "8"),
        ({"env": {"OMP_NUM_THREADS": "many"}}, {"device": "cpu"}, {}, 8, "8"),
        ({}, {}, {}, 8, None),
    ],
)
def test_threads_are_the_users_where_there_is_a_word_of_theirs(
    changes: dict[str, Any],
    host_changes: dict[str, Any],
    more_facts: dict[str, Any],
    threads: int,
    default: str | None,
) -> None:
    """The variable goes into default_env, which never overrides; what is counted is what will hold."""
    one = job(**changes)
    found, environment = make_threads(one, host(**host_changes), facts(**more_facts), one.processes or 1)
    assert (found, environment.get("OMP_NUM_THREADS")) == (threads, default)


def test_a_cpu_run_sees_no_gpu_and_torchrun_does_not_die_of_a_hangup() -> None:
    plan = make_plan(job(), host(device="cpu"), facts(), "p", PATHS)
    assert plan.default_env["CUDA_VISIBLE_DEVICES"] == ""
    assert "PET_SIGNALS_TO_HANDLE" not in plan.default_env
    plan = make_plan(job(), host(), facts(), "p", PATHS)
    assert "CUDA_VISIBLE_DEVICES" not in plan.default_env
    assert plan.default_env["PET_SIGNALS_TO_HANDLE"] == "SIGTERM,SIGINT"


def test_data_folders_are_links_on_the_host_and_here() -> None:
    project = spec(data=("data/owt",), persist=(".cache",))
    plan = make_plan(job(project=project), host(data={"data/owt": "/mnt/owt"}), facts(), "p", PATHS)
    assert (plan.links, plan.persist) == ({"data/owt": "/mnt/owt"}, (".cache",))
    plan = make_plan(job(project=project, data=("more",)), make_local(), facts(), "p", PATHS)
    assert plan.links == {
        "data/owt": "/project/data/owt",
        "more": "/project/more",
        ".cache": "/project/.cache",
    }
    assert plan.persist == ()
    with pytest.raises(ConfigError) as caught:
        make_plan(job(project=project, data=("more",)), host(), facts(), "p", PATHS)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("device", "changes", "word"),
    [
        ("cuda", {}, None),
        ("cpu", {"gpus": []}, None),
        ("cuda", {"gpus": [], "gpu_error": "driver too old"}, "driver too old"),
        ("cuda", {"gpus": []}, "no CUDA device"),
        ("cuda", {"python": {"path": "p", "version": None, "error": "not found"}}, "not found"),
        ("cpu", {"python": {"path": "p", "version": "3.11", "torch": None}}, "no torch"),
        (
            "cuda",
            {"python": {"path": "p", "version": "3.11", "torch": "2.4", "torch_cuda": None}},
            "without CUDA",
        ),
        ("cpu", {"python": {"path": "p", "version": "3.11", "torch": "2.4", "torch_cuda": None}}, None),
    ],
)
def test_what_makes_a_host_unfit(device: Any, changes: dict[str, Any], word: str | None) -> None:
    why = find_unfit(host(device=device), facts(**changes))
    assert why is None if word is None else word in str(why)


def test_the_plan_is_json_and_flags_outrank_the_hosts_environment() -> None:
    one = job(env={"A": "flag"}, checkpoints=("x.pt",), project=spec(checkpoints=("y.pt",)))
    plan = make_plan(
        one, host(env={"A": "host", "B": "host"}, peak_tflops={"bf16": 80.2}), facts(), "p", PATHS
    )
    message = json.loads(json.dumps(plan.as_message()))
    assert message["env"] == {"A": "flag", "B": "host"}
    assert message["argv"] == ["train.py"]
    assert message["checkpoints"] == ["x.pt"]
    assert message["gpus"] == {"count": 1}
    assert "notes" not in message
    assert make_plan(job(family=NANO), host(), facts(), "p", PATHS).checkpoints == ("out/ckpt.pt",)
    assert make_plan(job(), host(), facts(), "p", PATHS).checkpoints == ()


def test_a_known_card_is_not_measured_and_a_cpu_is() -> None:
    assert make_plan(job(), host(), facts(), "p", PATHS).measure is None
    measure = make_plan(job(processes=2), host(device="cpu"), facts(), "p", PATHS).measure
    assert measure is not None
    assert (measure["device"], measure["threads"]) == ("cpu", 8)
    odd = [{**GPUS[0], "name": "Unheard-of 9000", "sm_count": None, "clock_mhz": None, "capability": None}]
    assert make_plan(job(), host(), facts(gpus=odd), "p", PATHS).measure is not None


def test_a_glob_for_checkpoints_that_means_nothing_is_said_before_anything_starts() -> None:
    with pytest.raises(UsageError, match=r"\[z-a\].*comes after"):
        make_plan(job(checkpoints=("out/[z-a]*",)), host(), facts(), "p", PATHS)
