"""Which failures end a command, with which code and words, and which few of them may lead to this machine's CPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import (
    Box,
    Done,
    Laptop,
    known_line,
    make_laptop,
    make_python_without_torch,
    running_box,
    write_project,
)
from tests.sshd import free_port, make_key, public_line, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

HELLO = {"train.py": "import sys\nprint('hello from', *sys.argv)\n"}


@pytest.fixture
def hello(project: Path) -> Path:
    return write_project(project, HELLO)


def is_untouched(project: Path, *boxes: Box) -> bool:
    """Tell whether nothing was started, here or there."""
    started = [run for box in boxes for run in (box.root / "runs").glob("*")]
    return not (project / "runs").exists() and not started


def has_next_step(done: Done) -> bool:
    return "\nhint: " in done.err


# ---- host keys: exit 11 ----


def test_a_changed_key_ends_it_before_any_login(
    laptop: Laptop, box: Box, hello: Path, tmp_path: Path
) -> None:
    stranger = make_key(tmp_path / "stranger")
    laptop.trust(f"[127.0.0.1]:{box.sshd.port} {public_line(stranger)}")

    done = laptop.type(hello, "run", "train.py").expect(11)

    assert done.err.count("SHA256:") >= 2  # what it offers and what was known
    assert "known_hosts:1" in done.err
    assert has_next_step(done)
    log = box.sshd.wait_log("Connection")
    assert "userauth-request" not in log
    assert "Accepted" not in log
    assert is_untouched(hello, box)


def test_an_unknown_key_is_not_taken_when_nobody_can_be_asked(laptop: Laptop, box: Box, hello: Path) -> None:
    laptop.trust()

    done = laptop.type(hello, "run", "train.py").expect(11)

    assert "SHA256:" in done.err
    assert has_next_step(done)
    assert "userauth-request" not in box.sshd.read_log()
    assert is_untouched(hello, box)


def test_a_pin_decides_alone(laptop: Laptop, box: Box, hello: Path) -> None:
    pin = '"SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"'
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(host_key=pin)}')

    done = laptop.type(hello, "run", "--json", "train.py").expect(11)

    error = done.event("error")
    assert (error["kind"], error["exit_code"], error["verdict"]) == ("host-key", 11, "changed")
    assert is_untouched(hello, box)


def test_a_key_that_changes_while_a_run_goes_on_ends_the_attachment_only(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    write_project(project, {"train.py": "import time\nprint('up', flush=True)\ntime.sleep(600)\n"})
    run = laptop.ok(project, "run", "-d", "train.py").run_id()
    laptop.trust(f"[127.0.0.1]:{box.sshd.port} {public_line(make_key(tmp_path / 'stranger'))}")

    done = laptop.type(project, "logs", "-f").expect(11)

    assert "has changed" in done.err
    assert box.processes(run) != []


# ---- unreachable: the CPU here, or exit 10 ----


@pytest.fixture
def refused(alone: Laptop) -> Laptop:
    """A laptop whose only host refuses connections."""
    alone.write_hosts(
        f'default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = {free_port()}\ndevice = "cuda"\n'
    )
    return alone


@pytest.mark.torch
def test_a_refused_port_trains_here_and_says_why(refused: Laptop, hello: Path) -> None:
    done = refused.ok(hello, "run", "train.py", "x")

    assert done.out == b"hello from train.py x\n"
    assert "warning: no host can be reached, training on this machine's CPU" in done.err
    assert "box: " in done.err
    assert "refused" in done.err.lower()
    run = done.run_id()
    record = json.loads((hello / "runs" / run / "run.json").read_text())
    assert record["host"] == "local"
    assert any("refused" in reason.lower() for reason in record["reasons"])
    assert refused.ok(hello, "logs").out == done.out
    assert b"refused" in refused.ok(hello, "show").out.lower()


@pytest.mark.torch
def test_the_fallback_is_an_event(refused: Laptop, hello: Path) -> None:
    done = refused.ok(hello, "run", "--json", "train.py")

    assert "refused" in done.event("fallback")["reasons"][0].lower()
    assert done.event("started")["host"] == "local"


def test_without_fallback_it_is_exit_10(refused: Laptop, hello: Path) -> None:
    done = refused.type(hello, "run", "--no-fallback", "train.py").expect(10)

    assert "box: " in done.err
    assert has_next_step(done)
    assert not (hello / "runs").exists()


@pytest.mark.torch
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 no\r\n\r\n"])
def test_a_port_that_is_no_sshd_counts_as_unreachable_or_says_so(
    alone: Laptop, hello: Path, answer: bytes
) -> None:
    with serving(answer) as port:
        alone.write_hosts(f'default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = {port}\n')
        done = alone.type(hello, "run", "train.py")

    assert done.code == 0
    assert "no host can be reached" in done.err


@pytest.mark.torch
def test_no_host_at_all_is_the_cpu_here(alone: Laptop, hello: Path) -> None:
    done = alone.ok(hello, "run", "train.py")

    assert done.out == b"hello from train.py\n"
    assert "on this machine's CPU, python" in done.err
    assert "warning" not in done.err


def test_the_first_that_answers_is_used_and_the_other_is_recorded(
    laptop: Laptop, box: Box, hello: Path
) -> None:
    laptop.write_hosts(
        f'default = ["dead", "box"]\n[hosts.dead]\naddress = ["127.0.0.1"]\nport = {free_port()}\n'
        f"[hosts.box]\n{box.describe()}"
    )

    done = laptop.ok(hello, "run", "train.py")

    run = done.run_id()
    assert f"{run} on box (cpu)" in done.err
    assert "warning: passed over: dead: " in done.err  # said, not only recorded
    record = json.loads((hello / "runs" / run / "run.json").read_text())
    assert record["host"] == "box"
    assert record["reasons"][0].startswith("dead: ")


def test_a_second_address_takes_over(laptop: Laptop, box: Box, hello: Path) -> None:
    addresses = '["127.0.0.2", "127.0.0.1"]'  # nobody listens on the first
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(address=addresses)}')

    assert b"hello" in laptop.ok(hello, "run", "train.py").out


# ---- login: exit 12 ----


def test_a_refused_login_never_falls_back(laptop: Laptop, box: Box, hello: Path) -> None:
    (box.sshd.folder / "authorized_keys").write_text("")

    done = laptop.type(hello, "run", "train.py").expect(12)

    assert str(box.sshd.user_key) in done.err  # what was tried
    assert has_next_step(done)
    assert is_untouched(hello, box)


def test_a_key_that_is_not_there_is_named(laptop: Laptop, box: Box, hello: Path) -> None:
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe(identity_file=chr(34) + "/nowhere/id" + chr(34))}'
    )

    done = laptop.type(hello, "run", "train.py").expect(12)

    assert "/nowhere/id" in done.err


# ---- unfit: exit 13 ----


@pytest.fixture(scope="module")
def torchless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_python_without_torch(tmp_path_factory.mktemp("torchless") / "env")


def test_a_host_without_torch_is_unfit(laptop: Laptop, box: Box, hello: Path, torchless: Path) -> None:
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe(python=chr(34) + str(torchless) + chr(34))}'
    )

    done = laptop.type(hello, "run", "train.py").expect(13)

    assert f"{torchless} (Python 3." in done.err
    assert "has no torch" in done.err
    assert has_next_step(done)
    assert is_untouched(hello, box)


def test_a_host_without_torch_is_passed_over(
    laptop: Laptop, box: Box, hello: Path, torchless: Path, tmp_path: Path
) -> None:
    with running_box(tmp_path / "bare") as bare:
        laptop.trust(known_line(box.sshd), known_line(bare.sshd))
        python = f'"{torchless}"'
        laptop.write_hosts(
            f'default = ["bare", "box"]\n[hosts.bare]\n{bare.describe(python=python)}[hosts.box]\n{box.describe()}'
        )

        done = laptop.ok(hello, "run", "train.py")

        assert " on box (cpu)" in done.err
        assert "warning: passed over: bare: " in done.err
        assert not list((bare.root / "runs").iterdir())


def test_a_gpu_box_without_its_gpu_never_becomes_a_laptop_run(laptop: Laptop, box: Box, hello: Path) -> None:
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\n{box.describe(device=chr(34) + "cuda" + chr(34))}')

    done = laptop.type(hello, "run", "train.py").expect(13)

    assert "no CUDA device" in done.err
    assert is_untouched(hello, box)


def test_a_python_that_does_not_exist_is_unfit(laptop: Laptop, box: Box, hello: Path) -> None:
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe(python=chr(34) + "/no/python" + chr(34))}'
    )

    done = laptop.type(hello, "run", "train.py").expect(13)

    assert "/no/python" in done.err


def test_no_torch_anywhere_here_names_both_reasons(tmp_path: Path, hello: Path, torchless: Path) -> None:
    laptop = make_laptop(tmp_path / "laptop")
    laptop.command = (str(torchless), "-m", "remote_train")
    laptop.write_hosts(f'default = ["box"]\n[hosts.box]\naddress = ["127.0.0.1"]\nport = {free_port()}\n')

    done = laptop.type(hello, "run", "train.py").expect(13)

    assert "box: " in done.err
    assert "refused" in done.err.lower()
    assert "local: " in done.err
    assert "has no torch" in done.err
    assert "install torch" in done.err
    assert not (hello / "runs").exists()
