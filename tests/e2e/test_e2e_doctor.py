"""`doctor`: a real sshd examined step by step, what stops at which step, and answers that agree with this machine's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.machines import Box, Laptop, make_python_without_torch

MACHINES = Path(__file__).parents[1] / "host_system" / "data" / "machines"


def steps(event: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["step"]: row for row in event["steps"]}


def test_a_host_from_its_name_to_its_link(laptop: Laptop, box: Box, project: Path) -> None:
    (box.home / ".bashrc").write_text("echo twelve bytes\n")
    event = laptop.ok(project, "doctor", "box", "--json").event("doctor")
    seen = steps(event)

    assert list(seen)[:6] == ["ssh_config", "address", "connect", "host key", "login", "agent"]
    assert seen["address"]["lines"][0].startswith("127.0.0.1: 127.0.0.1 (")
    assert "SSH-2.0-OpenSSH_" in seen["connect"]["lines"][0]
    assert seen["host key"]["lines"] == [
        f"ssh-ed25519 {fingerprint(box.sshd.host_keys[0])}: the one that is known"
    ]
    assert str(box.sshd.user_key) in seen["login"]["lines"][0]
    shell = seen["shell"]
    if shell["lines"][0].startswith("/bin/bash"):
        assert "print 13 bytes before our program" in shell["lines"][0]
        assert shell["state"] == "warn"
    assert event["ok"]
    assert event["verdict"].startswith("box is ready: it trains on its CPU with torch 2.")
    assert event["next"] == "remote-train run --host box SCRIPT"
    numbers = event["numbers"]
    assert 0 < numbers["round_trip"] < 1
    assert abs(numbers["clock_offset"]) < 1
    assert min(numbers["down"], numbers["up"]) > 1e6
    assert event["facts"]["cpu"]["logical"] == os.cpu_count()


def fingerprint(key: Path) -> str:
    done = subprocess.run(["ssh-keygen", "-l", "-f", key], check=True, capture_output=True, text=True)
    return done.stdout.split()[1]


def test_where_it_stops_is_said_with_the_code_that_run_gives(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    bare = make_python_without_torch(tmp_path / "bare")
    laptop.write_hosts(
        f"[hosts.box]\n{box.describe()}"
        f"[hosts.gpu]\n{box.describe(device=chr(34) + 'cuda' + chr(34))}"
        f"[hosts.bare]\n{box.describe(python=json.dumps(str(bare)))}"
        '[hosts.dead]\naddress = ["127.0.0.1"]\nport = 9\n'
        '[hosts.nowhere]\naddress = ["nowhere.invalid"]\n'
    )
    cases = {"gpu": (13, "no CUDA device"), "bare": (13, "has no torch"), "dead": (10, "refused")}
    cases["nowhere"] = (10, "name not resolved")
    done = laptop.type(project, "doctor", "--no-speed", "--json", *cases).expect(13)
    events = {event["host"]: event for event in done.events}

    assert {name: event["exit_code"] for name, event in events.items()} == {
        name: code for name, (code, _) in cases.items()
    }
    for name, (_, words) in cases.items():
        assert words in events[name]["verdict"], events[name]
        assert events[name]["next"]
    assert list(steps(events["dead"])) == ["ssh_config", "address", "connect"]
    assert steps(events["dead"])["connect"]["state"] == "fail"
    assert steps(events["gpu"])["driver"]["state"] == "fail"
    assert "install torch there" in events["bare"]["next"]

    (box.sshd.folder / "authorized_keys").write_text("")
    login = laptop.type(project, "doctor", "box").expect(12).out.decode()
    assert "ok host key" in login
    assert "NO login" in login
    laptop.trust()
    key = laptop.type(project, "doctor", "box").expect(11).out.decode()
    assert "NO host key" in key
    assert "remote-train hosts trust box" in key.splitlines()[-1]


def test_a_host_behind_another_is_not_looked_for_from_here(laptop: Laptop, box: Box, project: Path) -> None:
    config = laptop.home / ".ssh" / "config"
    hop = f"Host hop\n  HostName 127.0.0.1\n  Port {box.sshd.port}\n  IdentityFile {box.sshd.user_key}\n"
    inner = f"Host inner\n  HostName localhost\n  HostKeyAlias [127.0.0.1]:{box.sshd.port}\n  ProxyJump hop\n"
    config.write_text(hop + inner + config.read_text())
    laptop.write_hosts(f"[hosts.inner]\n{box.describe(address='')}")
    event = laptop.type(project, "doctor", "inner", "--no-speed", "--json").event("doctor")
    seen = steps(event)

    assert "address" not in seen
    assert seen["ssh_config"]["lines"][1] == "through other hosts, which resolve its name and reach it"
    assert [row["step"] for row in event["steps"]].count("login") == 1
    assert event["exit_code"] == 0, event


def test_this_laptop_and_a_hosts_toml_that_is_wrong(laptop: Laptop, project: Path) -> None:
    event = laptop.ok(project, "doctor", "--json").event("doctor")
    seen = steps(event)

    assert {
        "remote-train",
        "ssh",
        "keys",
        "hosts.toml",
        "ssh_config",
        "state",
        "python",
        "torch",
        "cpu",
    } <= set(seen)
    assert seen["hosts.toml"]["lines"][0].endswith(": box")
    assert event["verdict"].startswith("local is ready")
    laptop.write_hosts("[hosts.box]\nadress = 1\n")
    wrong = laptop.type(project, "doctor").expect(2).out.decode()
    assert "NO hosts.toml" in wrong
    assert "adress" in wrong


@pytest.mark.skipif(sys.platform != "linux", reason="lscpu and /proc are Linux's")
def test_its_answers_agree_with_lscpu_and_proc(alone: Laptop, project: Path) -> None:
    event = alone.ok(project, "doctor", "--json").event("doctor")
    cpu = event["facts"]["cpu"]
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)

    assert event["facts"]["memory_bytes"] == pytest.approx(int(memory.split()[1]) * 1024, rel=0.01)
    assert event["facts"]["kernel"] == os.uname().release
    if shutil.which("lscpu") is None:
        pytest.skip("no lscpu here")
    done = subprocess.run(
        ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    text = alone.home / "lscpu.txt"
    text.write_text(done.stdout)
    said = alone.ok(project, "doctor", "--from", str(text), "--json").event("doctor")["facts"]["cpu"]
    assert (said["logical"], said["physical"]) == (cpu["logical"], cpu["physical"])
    assert said["model"] == cpu["model"]


def test_a_machine_by_a_text(alone: Laptop, project: Path) -> None:
    path = MACHINES / "desktop-rtx-4070-ti.toml"
    said = alone.ok(project, "doctor", "--from", str(path)).out.decode()

    assert "NVIDIA GeForce RTX 4070 Ti (AD104, discrete)" in said
    assert said.splitlines()[-1].startswith(
        "desktop-rtx-4070-ti has NVIDIA GeForce RTX 4070 Ti (AD104, discrete): device = cuda"
    )
    missing = alone.type(project, "doctor", "--from", "nothing.txt").expect(2)
    assert "nothing.txt" in missing.err
