"""GPUs through ctypes: real calls into a library compiled here that answers like NVIDIA's."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from remote_train.host import facts, gpus
from tests.host.account_kit import until

SOURCE = Path(__file__).with_name("fake_nvidia.c")


def build(folder: Path, *flags: str) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = folder / "libfake.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), *flags, str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True)
    return str(library)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build(tmp_path_factory.mktemp("nvidia"))


@pytest.fixture
def nvidia(library: str, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("REMOTE_TRAIN_NVML", library)
    monkeypatch.setenv("REMOTE_TRAIN_LIBCUDA", library)
    return monkeypatch


def uuid(index: int) -> str:
    return f"GPU-0{index}010203-0405-0607-0809-0a0b0c0d0e0f"


FIRST = {
    "index": 0,
    "uuid": uuid(0),
    "name": "NVIDIA GeForce RTX 4070 Ti",
    "memory_bytes": 12 << 30,
    "memory_used_bytes": 1 << 30,
    "sm_count": 60,
    "clock_mhz": 2610,
    "bandwidth": 504.048e9,
    "capability": [8, 9],
    "processes": [
        {"pid": 100, "compute": False, "draws": True, "memory_bytes": 4000000},
        {"pid": 200, "compute": True, "draws": True, "memory_bytes": None},
        {"pid": 300, "compute": True, "draws": False, "memory_bytes": 500000000},
    ],
}


@pytest.mark.usefixtures("nvidia")
def test_two_cards_in_full() -> None:
    answer = gpus.read_gpus()

    assert answer["driver"] == "570.86.15"
    assert answer["gpu_error"] is None
    assert answer["gpus"][0] == FIRST
    # libcuda lists the cards the other way round: they are matched by uuid.
    assert [gpu["sm_count"] for gpu in answer["gpus"]] == [60, 61]
    assert answer["gpus"][1]["processes"] == []


def test_the_fast_path_knows_no_compute_units(nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("REMOTE_TRAIN_LIBCUDA", "/nowhere/libcuda.so")

    assert [gpu["uuid"] for gpu in gpus.list_gpus()] == [uuid(0), uuid(1)]
    assert [gpu["sm_count"] for gpu in gpus.list_gpus()] == [None, None]


@pytest.mark.parametrize(
    ("plan", "seen", "words"),
    [
        ("mismatch", 0, "driver/library version mismatch: the driver was updated, restart the host"),
        ("unloaded", 0, "the NVIDIA driver is not loaded"),
        ("odd", 0, "nvmlInit_v2: Unknown Error"),
        ("empty", 0, "the NVIDIA driver sees no GPU"),
        ("lost", 1, "GPU 1: the GPU has fallen off the bus: restart the host"),
        ("no cuda", 2, "cuInit failed with CUDA error 100"),
    ],
)
def test_what_is_broken_is_said(nvidia: pytest.MonkeyPatch, plan: str, seen: int, words: str) -> None:
    nvidia.setenv("FAKE_NVIDIA", plan)
    answer = gpus.read_gpus()

    assert len(answer["gpus"]) == seen
    assert answer["gpu_error"] == words


def test_the_server_of_mps_computes_for_others_and_is_no_user(
    nvidia: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = tmp_path / "nvidia-cuda-mps-server"
    server.symlink_to(shutil.which("cat") or "")
    process = subprocess.Popen([server], stdin=subprocess.PIPE)
    nvidia.setenv("FAKE_NVIDIA_PID", str(process.pid))
    try:
        # its name is there a moment after the program is
        until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(bytes(server)), "its name")
        (user,) = gpus.list_gpus()[0]["processes"]
        assert (user["pid"], user["compute"]) == (process.pid, False)
    finally:
        process.communicate()
    nvidia.setenv("FAKE_NVIDIA_PID", str(os.getpid()))
    assert gpus.list_gpus()[0]["processes"][0]["compute"]


def test_a_partitioned_card_is_its_instances(nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("FAKE_NVIDIA", "mig")
    found = gpus.read_gpus()["gpus"]

    assert [gpu["uuid"] for gpu in found] == ["MIG-00000004", "MIG-00000005", uuid(1)]
    assert [gpu["sm_count"] for gpu in found] == [14, 14, 61]


def test_an_old_driver_lists_processes_in_the_old_shape(tmp_path: Path, nvidia: pytest.MonkeyPatch) -> None:
    nvidia.setenv("REMOTE_TRAIN_NVML", build(tmp_path, "-DOLD"))
    first, second = gpus.list_gpus()

    assert [(row["pid"], row["memory_bytes"]) for row in first["processes"]] == [(300, 500000000), (301, 7)]
    assert second["processes"] == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = str(tmp_path / "libnvidia-ml.so.1")
    monkeypatch.setenv("REMOTE_TRAIN_NVML", missing)

    assert gpus.missing_driver() == f"no NVIDIA driver: {missing} not found"
    assert gpus.list_gpus() == []
    assert gpus.read_gpus() == {
        "gpus": [],
        "driver": None,
        "driver_cuda": None,
        "gpu_error": f"no NVIDIA driver: {missing} not found",
    }


def test_a_library_without_the_functions_is_no_traceback(nvidia: pytest.MonkeyPatch, tmp_path: Path) -> None:
    empty = tmp_path / "empty.c"
    empty.write_text("int nothing;\n")
    library = tmp_path / "libempty.so"
    subprocess.run(["gcc", "-shared", "-o", str(library), str(empty)], check=True)

    nvidia.setenv("REMOTE_TRAIN_LIBCUDA", str(library))
    assert gpus.read_gpus()["gpu_error"] == "this NVIDIA driver has no cuInit"
    nvidia.setenv("REMOTE_TRAIN_NVML", str(library))
    assert gpus.read_gpus()["gpu_error"] == "this NVIDIA driver has no nvmlInit_v2"


def test_facts_ask_in_a_process_of_their_own(nvidia: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvidia.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = facts.collect_facts(["python3"], str(tmp_path))

    assert found["gpus"][0] == FIRST
    assert found["driver"] == "570.86.15"


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("hang", "the NVIDIA driver did not answer: no end within 1 s"),
        ("crash", "the NVIDIA driver did not answer"),
    ],
)
def test_a_driver_that_hangs_or_crashes_costs_the_gpus_only(
    nvidia: pytest.MonkeyPatch, tmp_path: Path, plan: str, words: str
) -> None:
    nvidia.setenv("FAKE_NVIDIA", plan)
    nvidia.setattr(facts, "START_SECONDS", 1.0)
    found = facts.collect_facts([], str(tmp_path))

    assert found["gpus"] == []
    assert found["gpu_error"].startswith(words)
    assert found["cpu"]["usable"] >= 1
