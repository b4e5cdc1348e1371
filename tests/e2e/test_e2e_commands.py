"""Every command after `run`, as a user types it, from this laptop and from another one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from typing import TYPE_CHECKING

import pytest

from tests.e2e.machines import Box, Laptop, make_laptop, poll, read_until, write_project

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(100)]

SAVES = """
import pathlib
out = pathlib.Path("out")
out.mkdir()
for n in (1, 2, 3):
    (out / f"step{n}.pt").write_bytes(b"%d" % n * 1000)
(out / "notes.txt").write_text("notes")
pathlib.Path("ckpt ünï.pt").write_text("named")
for n in range(30):
    print("line", n)
"""


@pytest.fixture
def saved(laptop: Laptop, project: Path) -> str:
    """A run that has ended and left checkpoints; nothing of it was pulled."""
    write_project(project, {"train.py": SAVES, "shipped.pt": "came along"})
    return laptop.ok(project, "run", "--no-pull", "train.py").run_id()


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ---- pull ----


def test_pull_brings_the_checkpoints_and_only_those(
    laptop: Laptop, box: Box, project: Path, saved: str
) -> None:
    files = project / "runs" / saved / "files"
    assert not files.exists()

    done = laptop.ok(project, "pull")

    assert files_of(files) == {"out/step1.pt", "out/step2.pt", "out/step3.pt", "ckpt ünï.pt"}
    assert (files / "out/step3.pt").read_bytes() == b"3" * 1000
    assert hashlib.sha256(b"3" * 1000).hexdigest()[:12] in done.err
    again = laptop.ok(project, "pull")
    assert "nothing new: 4 files here already" in again.err
    assert files_of(box.code(saved)) == {*files_of(files), "out/notes.txt", "shipped.pt", "train.py"}


def test_pull_latest_match_all_and_to(laptop: Laptop, project: Path, saved: str, tmp_path: Path) -> None:
    laptop.ok(project, "pull", "--match", "*.txt", "--to", str(tmp_path / "a"))
    laptop.ok(project, "pull", saved, "--all", "--to", str(tmp_path / "b"))
    latest = laptop.ok(project, "pull", "--latest", "--json", "--to", str(tmp_path / "c"))

    assert files_of(tmp_path / "a") == {"out/notes.txt"}
    assert files_of(tmp_path / "b") == {
        "out/step1.pt",
        "out/step2.pt",
        "out/step3.pt",
        "out/notes.txt",
        "ckpt ünï.pt",
    }
    assert files_of(tmp_path / "c") == {"ckpt ünï.pt"}
    assert latest.event("pull")["files"] == [str(tmp_path / "c" / "ckpt ünï.pt")]


def test_pull_never_overwrites_what_is_not_its_own(laptop: Laptop, project: Path, saved: str) -> None:
    place = project / "runs" / saved / "files" / "out" / "step2.pt"
    place.parent.mkdir(parents=True)
    place.write_text("mine")

    done = laptop.type(project, "pull").expect(40)

    assert place.read_text() == "mine"
    assert str(place) in done.err
    assert "--to" in done.err
    assert (place.parent / "step3.pt").exists()  # the others came


def test_pull_of_nothing_says_so(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "pass"})
    laptop.ok(project, "run", "train.py")

    assert "the run has made no such file" in laptop.ok(project, "pull").err


def test_a_checkpoint_glob_of_the_command_line(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "open('weights.xyz', 'w').write('w')\n"})

    done = laptop.ok(project, "run", "--checkpoints", "*.xyz", "train.py")

    assert (project / "runs" / done.run_id() / "files" / "weights.xyz").read_text() == "w"


# ---- logs ----


def test_logs_tail_and_rank(laptop: Laptop, project: Path, saved: str) -> None:
    assert laptop.ok(project, "logs", "--tail", "2").out == b"line 28\nline 29\n"
    assert laptop.ok(project, "logs", "--tail", "0").out == b""
    assert laptop.ok(project, "logs", saved[:-2], "--rank", "all").out.count(b"\n") == 30
    done = laptop.type(project, "logs", "--rank", "1").expect(2)
    assert "rank" in done.err


def test_logs_of_a_running_one_end_where_it_is(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "import time\nprint('so far', flush=True)\ntime.sleep(600)\n"})
    run = laptop.ok(project, "run", "-d", "train.py").run_id()
    mirror = project / "runs" / run / "attempts/1/ranks/0.log"
    poll(lambda: laptop.ok(project, "logs").out == b"so far\n", "its first line")
    assert mirror.read_bytes() == b"so far\n"
    assert "running" in laptop.ok(project, "ps").out.decode()
    laptop.ok(project, "stop", "--grace", "0")


def test_offline_the_mirror_is_shown_with_a_warning(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "import time\nprint('seen', flush=True)\ntime.sleep(600)\n"})
    process = laptop.popen(project, "run", "train.py")
    read_until(process.stdout, b"seen\n")
    process.kill()
    process.communicate()
    before = laptop.hosts_file.read_text()
    laptop.hosts_file.write_text(before.replace(f"port = {box.sshd.port}", "port = 9"))

    logs = laptop.type(project, "logs")
    listed = laptop.ok(project, "ps")
    shown = laptop.ok(project, "show")
    metrics = laptop.ok(project, "metrics")

    assert logs.out == b"seen\n"
    assert "as last seen" in logs.err
    assert "running?" in listed.out.decode()
    for done in (listed, shown, metrics):
        assert "as last seen" in done.err
        assert "refused" in done.err
    stopped = laptop.type(project, "stop").expect(10)  # and what must be done there cannot be
    assert "refused" in stopped.err
    laptop.type(project, "pull").expect(10)
    laptop.hosts_file.write_text(before)
    laptop.ok(project, "stop", "--grace", "0")


# ---- names of runs ----


def test_a_name_is_taken_once(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "import sys\nprint(sys.argv[1])\n"})
    assert laptop.ok(project, "run", "--name", "baseline", "train.py", "one").run_id() == "baseline"

    done = laptop.type(project, "run", "--name", "baseline", "train.py", "two").expect(21)

    assert "baseline" in done.err
    assert "--name" in done.err
    assert box.log("baseline") == b"one\n"
    assert laptop.ok(project, "logs", "base").out == b"one\n"


def test_a_name_taken_by_another_laptop(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    write_project(project, {"train.py": "print('first')\n"})
    laptop.ok(project, "run", "--name", "baseline", "train.py")
    other = make_laptop(tmp_path / "other", box)
    elsewhere = write_project(tmp_path / "elsewhere", {"train.py": "print('second')\n"})

    done = other.type(elsewhere, "run", "--name", "baseline", "train.py").expect(21)

    assert "baseline" in done.err
    assert box.log("baseline") == b"first\n"
    assert not list((elsewhere / "runs").glob("*/run.json"))


def test_an_ambiguous_prefix_is_refused(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "pass"})
    for name in ("exp-1", "exp-2"):
        laptop.ok(project, "run", "--name", name, "train.py")

    done = laptop.type(project, "logs", "exp").expect(2)

    assert "exp-1" in done.err
    assert "exp-2" in done.err


def test_another_laptop_knows_a_run_by_its_host(box: Box, saved: str, tmp_path: Path) -> None:
    other = make_laptop(tmp_path / "other", box)
    away = tmp_path / "away"
    away.mkdir()

    assert other.ok(away, "logs", f"box:{saved}").out == box.log(saved)
    assert saved in other.ok(away, "ps", "--all").out.decode()
    assert b"ended" in other.ok(away, "show", f"box:{saved}").out
    other.ok(away, "pull", f"box:{saved}", "--to", str(tmp_path / "pulled"), "--match", "out/step1.pt")
    assert (tmp_path / "pulled/out/step1.pt").read_bytes() == b"1" * 1000
    assert "no run named nosuch" in other.type(away, "logs", "box:nosuch").expect(2).err


def test_another_laptop_stops_a_run(laptop: Laptop, box: Box, project: Path, tmp_path: Path) -> None:
    write_project(project, {"train.py": "import time\ntime.sleep(600)\n"})
    run = laptop.ok(project, "run", "-d", "train.py").run_id()
    other = make_laptop(tmp_path / "other", box)

    other.ok(tmp_path, "stop", f"box:{run}", "--grace", "0")

    assert box.processes(run) == []
    assert b"stopped" in laptop.ok(project, "ps").out


# ---- metrics, ps, show ----

GPT_LINES = """
import time
print("flops per token: 1000000")
print("tokens per step: 1000")
for n in range(1, 21):
    print(f"step {n}/20 | loss {5 - n / 10:.4f} | 100.0 ms | 10,000 tok/s", flush=True)
"""


@pytest.mark.slow
def test_metrics_as_json_and_csv(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": GPT_LINES})
    laptop.ok(project, "run", "train.py")

    records = laptop.ok(project, "metrics", "--json").events
    table = list(csv.DictReader(io.StringIO(laptop.ok(project, "metrics", "--csv").out.decode())))

    assert [record["step"] for record in records] == list(range(1, 21))
    last = records[-1]
    assert last["loss"] == 3.0
    assert last["step_seconds"] == pytest.approx(0.1)
    assert last["tokens_per_second"] == pytest.approx(10_000)
    # 1e6 FLOPs a token, 1e4 tokens/s, of the 0.1 TFLOP/s that hosts.toml states
    assert last["mfu"] == pytest.approx(0.1)
    assert last["peak_flops"] == 1e11
    assert "hosts.toml" in last["peak_source"]
    assert len(table) == 20
    assert table[-1].keys() == {key for key in last if key != "event"}
    assert math.isclose(float(table[-1]["mfu"]), last["mfu"])
    assert table[-1]["reported_mfu"] == ""  # unknown is empty, never 0

    explained = laptop.ok(project, "explain", "--json").event("explanation")
    assert explained["step_seconds"] == pytest.approx(0.1)
    assert "from its output" in laptop.ok(project, "explain").out.decode()
    assert "no run is named nonesuch" in laptop.type(project, "explain", "nonesuch").expect(2).err


def test_ps_and_show_say_the_same(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": GPT_LINES + "open('ckpt.pt', 'w').write('w')\n"})
    run = laptop.ok(project, "run", "train.py").run_id()

    row = laptop.ok(project, "ps", "--json").event("run")
    shown = laptop.ok(project, "show", "--json").event("run")
    text = laptop.ok(project, "show").out.decode()

    assert (row["run"], row["host"], row["state"], row["exit"]) == (run, "box", "ended", "0")
    assert (row["step"], row["steps"], row["loss"]) == (20, 20, 3.0)
    assert row["mfu"] == pytest.approx(0.1)
    assert shown["last"]["loss"] == 3.0
    assert [(row["path"], row["intact"]) for row in shown["checkpoints"]] == [("files/ckpt.pt", True)]
    assert "10.0 % of 100 GFLOP/s (hosts.toml" in text
    assert f"remote-train pull {run}" in text
    assert run in laptop.ok(project, "ps").out.decode()


def test_ps_is_of_this_project_unless_asked(laptop: Laptop, project: Path, tmp_path: Path) -> None:
    other = write_project(tmp_path / "other", {"train.py": "pass"})
    write_project(project, {"train.py": "pass"})
    laptop.ok(project, "run", "--name", "here", "train.py")
    laptop.ok(other, "run", "--name", "there", "train.py")

    assert [event["run"] for event in laptop.ok(project, "ps", "--json").events] == ["here"]
    assert {event["run"] for event in laptop.ok(project, "ps", "-a", "--json").events} == {"here", "there"}


# ---- hosts, init, and the rest ----


def test_hosts_list_and_check(laptop: Laptop, box: Box, project: Path) -> None:
    laptop.write_hosts(
        f'default = ["box"]\n[hosts.box]\n{box.describe()}[hosts.gpu]\n{box.describe(device=chr(34) + "cuda" + chr(34))}'
        '[hosts.dead]\naddress = ["127.0.0.1"]\nport = 9\n'
    )

    listed = {event["name"]: event for event in laptop.ok(project, "hosts", "list", "--json").events}
    good = laptop.ok(project, "hosts", "check", "box")
    unfit = laptop.type(project, "hosts", "check", "gpu").expect(13)
    dead = laptop.type(project, "hosts", "check", "dead")
    every = laptop.type(project, "hosts", "check", "--json")

    assert listed.keys() >= {"box", "gpu", "dead", "local"}
    assert listed["box"]["default"] is True
    assert b"ready" in good.out
    assert b"torch 2." in good.out
    assert b"no CUDA device" in unfit.out
    assert dead.code == 10
    assert b"refused" in dead.out
    assert {event["host"]: event["ok"] for event in every.events} == {
        "box": True,
        "gpu": False,
        "dead": False,
    }
    assert every.code != 0


def test_hosts_check_names_a_refused_login_and_a_wrong_key(laptop: Laptop, box: Box, project: Path) -> None:
    (box.sshd.folder / "authorized_keys").write_text("")
    login = laptop.type(project, "hosts", "check").expect(12)
    laptop.trust()
    key = laptop.type(project, "hosts", "check").expect(11)

    assert str(box.sshd.user_key).encode() in login.out
    assert b"SHA256:" in key.out


def test_a_host_of_ssh_config_needs_no_entry(laptop: Laptop, box: Box, project: Path) -> None:
    write_project(project, {"train.py": "print('alias')\n"})
    laptop.hosts_file.unlink()
    config = laptop.home / ".ssh" / "config"
    alias = f"Host mybox\n  HostName 127.0.0.1\n  Port {box.sshd.port}\n  IdentityFile {box.sshd.user_key}\n"
    config.write_text(alias + config.read_text())

    done = laptop.type(project, "run", "--host", "mybox", "train.py")

    assert done.code == 13  # it was reached; of its Python nothing is known
    assert '`python = "' in done.err or "no CUDA device" in done.err
    assert "mybox" in laptop.ok(project, "hosts", "list").out.decode()
    typo = laptop.type(project, "run", "--host", "mybax", "train.py").expect(2)
    assert "did you mean 'mybox'?" in typo.err


def test_init_writes_a_file_that_works(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "print('made by init')\n"})

    done = laptop.ok(project, "init")

    assert "remote-train.toml" in done.err
    assert laptop.ok(project, "run").out == b"made by init\n"
    assert "exists already" in laptop.type(project, "init").expect(2).err


def test_version_help_and_completion(laptop: Laptop, project: Path) -> None:
    assert laptop.ok(project, "--version").out.startswith(b"remote-train 0.")
    help_text = laptop.ok(project, "--help").out.decode()
    for command in ("run", "logs", "ps", "show", "stop", "pull", "metrics", "hosts", "init"):
        assert f"\n  {command}" in help_text
        assert b"Usage" in laptop.ok(project, command, "--help").out
    for shell in ("bash", "zsh", "fish"):
        script = laptop.ok(
            project, "--show-completion", shell, env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
        )
        assert b"remote-train" in script.out


def test_hosts_file_can_be_named(laptop: Laptop, project: Path, tmp_path: Path) -> None:
    write_project(project, {"train.py": "print('found')\n"})
    elsewhere = tmp_path / "other-hosts.toml"
    laptop.hosts_file.rename(elsewhere)
    assert laptop.ok(project, "run", "--hosts-file", str(elsewhere), "train.py").out == b"found\n"
    named = {"REMOTE_TRAIN_HOSTS": str(elsewhere)}
    assert laptop.ok(project, "run", "train.py", env=named).out == b"found\n"
    missing = laptop.type(project, "run", "--hosts-file", str(tmp_path / "no.toml"), "train.py").expect(2)
    assert "no.toml" in missing.err


def test_a_run_record_is_private_and_complete(box: Box, project: Path, saved: str) -> None:
    record = json.loads((project / "runs" / saved / "run.json").read_text())

    assert record["run"] == saved
    assert record["host"] == "box"
    assert record["exit"]["code"] == 0
    assert (project / "runs" / saved / ".gitignore").read_text() == "*\n"
    assert box.root.stat().st_mode & 0o777 == 0o700
