"""A run goes on: on its host, on another, on this machine; from its newest checkpoint, with its own code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest

from remote_train.host import layout
from tests.e2e.machines import (
    REPOSITORY,
    Box,
    Laptop,
    find_marked,
    known_line,
    poll,
    read_until,
    running_box,
    write_project,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.sshd, pytest.mark.timeout(110)]

TINY = [
    "--steps=200",
    "--layers=1",
    "--heads=1",
    "--width=16",
    "--block-size=16",
    "--batch-size=4",
    "--warmup=2",
    "--log-every=1",
    "--eval-every=100",
    "--checkpoint-every=20",
]
WHERE = [
    ["--host", "box"],
    pytest.param(
        ["--host", "other"], marks=pytest.mark.slow
    ),  # by day the gpt below goes to that host and comes from it
    ["--local"],
]

# Counts to 9, one file a step; holds at the step that GATE names until the file is there.
COUNTING = """
import os, sys, time
start = int(open("out/ckpt.pt").read()) + 1 if "--resume" in sys.argv else 1
print("args", *sys.argv[1:], flush=True)
print("begins at", start, flush=True)
gate, _, hold = os.environ.get("GATE", "").rpartition(":")
os.makedirs("out", exist_ok=True)
for step in range(start, 10):
    while str(step) == hold and not os.path.exists(gate):
        time.sleep(0.01)
    with open("out/new", "w") as file:
        file.write(str(step))
    os.replace("out/new", "out/ckpt.pt")
    print(f"step {step}/9 | loss {1 / step:.4f} | 20.0 ms", flush=True)
"""
SETTINGS = 'checkpoints = ["out/ckpt.pt"]\nresume_args = ["--resume"]\n'


STANDING = ("state", "exit", "why", "host", "state_dir", "attempts")


@pytest.fixture
def other(laptop: Laptop, box: Box, tmp_path: Path) -> Iterator[Box]:
    """A second host that the laptop knows."""
    with running_box(tmp_path / "second") as made:
        laptop.trust(known_line(box.sshd), known_line(made.sshd))
        laptop.write_hosts(
            f'default = ["box"]\n[hosts.box]\n{box.describe()}[hosts.other]\n{made.describe()}'
        )
        yield made


def losses(output: bytes) -> dict[int, str]:
    """Return the losses of a gpt's output by step, as they were printed."""
    return {int(step): loss for step, loss in re.findall(r"step (\d+)/\d+ \| loss ([\d.]+)", output.decode())}


def record(project: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / "runs" / run / "run.json").read_text())
    return found


def mirror(project: Path, run: str, attempt: int) -> bytes:
    return (project / "runs" / run / "attempts" / str(attempt) / "ranks" / "0.log").read_bytes()


def hold(laptop: Laptop, project: Path, gate: Path, step: int, *args: str) -> str:
    """Start the counting script and stop it while it holds at a step."""
    write_project(project, {"train.py": COUNTING, "remote-train.toml": SETTINGS})
    run = laptop.ok(project, "run", "-d", *args, "--env", f"GATE={gate}:{step}", "train.py").run_id()
    poll(lambda: f"step {step - 1}/9" in laptop.ok(project, "logs", run).out.decode(), "its step")
    laptop.ok(project, "stop", "--grace", "0", run)
    return run


def train_to(laptop: Laptop, project: Path, step: int, *args: str) -> str:
    """Start a gpt, or go on with it, and wait until it has passed a step."""
    done = laptop.ok(project, args[0], "-d", *args[1:], seconds=100)
    run = done.run_id()

    with laptop.popen(project, "logs", "-f", "--no-pull", run) as following:
        read_until(following.stdout, b"step %d/" % step, seconds=100)
        following.kill()
    return run


def freeze(box: Box, run: str, attempt: int) -> None:
    """Hold a training where it is; its supervisor goes on."""
    path = box.root / "runs" / run / "attempts" / str(attempt) / layout.ATTEMPT
    attempt_record = json.loads(path.read_text())
    for pid in find_marked(attempt_record["cookie"]):
        if pid != attempt_record["pid"]:
            os.kill(pid, signal.SIGSTOP)


@pytest.mark.torch
@pytest.mark.timeout(400)
def test_a_gpt_goes_on_anywhere_as_if_nothing_had_happened(
    laptop: Laptop, box: Box, other: Box, tmp_path: Path, measured: Path
) -> None:
    """The losses over two hosts and this machine are those of a run that nobody interrupted, to the last digit."""
    project = tmp_path / "gpt"
    shutil.copytree(REPOSITORY / "examples" / "gpt", project, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(measured, laptop.root / "peaks")
    whole = losses(laptop.ok(project, "run", "train.py", *TINY, seconds=200).out)
    assert sorted(whole) == list(range(1, 201))

    run = train_to(laptop, project, 50, "run", "--name", "hopping", "train.py", *TINY)
    for pid in box.processes(run):  # its supervisor too: nobody can say how it ended
        os.kill(pid, signal.SIGKILL)
    train_to(laptop, project, 100, "resume", run, "--host", "other")
    freeze(other, run, 2)  # or it may be done before the stop is there
    laptop.ok(project, "stop", "--grace", "0", run)
    laptop.ok(project, "resume", run, "--local", seconds=200)

    curve: dict[int, str] = {}
    for attempt in (1, 2, 3):
        printed = losses(mirror(project, run, attempt))
        assert {step: whole[step] for step in printed} == printed
        curve |= printed
    assert curve == whole
    begins = [min(losses(mirror(project, run, attempt))) for attempt in (1, 2, 3)]
    assert begins[0] == 1
    assert all((step - 1) % 20 == 0 and step > 20 for step in begins[1:])


@pytest.mark.parametrize("where", WHERE, ids=lambda where: where[-1].strip("-"))
def test_it_goes_on_from_the_newest_checkpoint(
    laptop: Laptop, box: Box, other: Box, project: Path, tmp_path: Path, where: list[str]
) -> None:
    run = hold(laptop, project, tmp_path / "go", 5)
    (project / "train.py").write_text("raise SystemExit('this is not the code of the run')")
    (tmp_path / "go").touch()

    done = laptop.ok(project, "resume", run, *where)

    assert done.out == b"args --resume\nbegins at 5\n" + b"".join(
        b"step %d/9 | loss %.4f | 20.0 ms\n" % (step, 1 / step) for step in range(5, 10)
    )
    assert "going on from out/ckpt.pt of attempt 1" in done.err
    first, second = record(project, run)["attempts"]
    host = where[1] if len(where) > 1 else "local"
    assert (first["host"], second["host"], record(project, run)["host"]) == ("box", host, host)
    assert second["checkpoint"]["attempt"] == 1
    assert second["checkpoint"]["sha256s"].keys() == {"out/ckpt.pt"}
    assert second["checkpoint"]["step"] in (None, 1, 2, 3, 4)
    assert mirror(project, run, 2) == done.out
    assert (project / "runs" / run / "files" / "out" / "ckpt.pt").read_text() == "9"
    assert laptop.ok(project, "ps", "--json").event("run")["host"] == host
    assert laptop.ok(project, "logs", run).out == done.out
    rows = laptop.ok(project, "show", "--json", run).event("run")["attempts"]
    assert [(row["attempt"], row["host"], row["exit"], row["checkpoint"]) for row in rows] == [
        (1, "box", "stopped", None),
        (2, host, "0", "out/ckpt.pt"),
    ]
    shown = laptop.ok(project, "show", run).out.decode()
    assert re.search(rf"2  {host} +.* ended: 0 +from out/ckpt.pt", shown), shown
    root = {"box": box.root, "other": other.root, "local": laptop.root}[host]
    attempt = json.loads((root / "runs" / run / "attempts" / "2" / layout.ATTEMPT).read_text())
    assert [row["path"] for row in attempt["restored"]] == ["out/ckpt.pt"]


def test_a_run_that_goes_on_is_not_resumed(laptop: Laptop, project: Path, tmp_path: Path) -> None:
    write_project(project, {"train.py": COUNTING, "remote-train.toml": SETTINGS})
    run = laptop.ok(project, "run", "-d", "--env", f"GATE={tmp_path / 'go'}:3", "train.py").run_id()
    poll(lambda: "step 2/9" in laptop.ok(project, "logs", run).out.decode(), "its step")
    refused = laptop.type(project, "resume", run).expect(2)
    assert f"{run} is running on box" in refused.err
    assert f"remote-train logs -f {run}" in refused.err
    assert f"remote-train stop {run}" in refused.err
    assert len(record(project, run)["attempts"]) == 1
    laptop.ok(project, "stop", "--grace", "0", run)


def test_two_commands_at_once_start_one_attempt(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    run = hold(laptop, project, tmp_path / "go", 3)
    both = [laptop.popen(project, "resume", "-d", run) for _ in range(2)]
    ends = [(process.communicate()[1].decode(), process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    (refused,) = [words for words, code in ends if code == 2]
    assert "another command is resuming" in refused or f"{run} is " in refused
    assert [item["attempt"] for item in record(project, run)["attempts"]] == [1, 2]
    assert sorted(path.name for path in (box.root / "runs" / run / "attempts").iterdir()) == ["1", "2"]
    laptop.ok(project, "stop", "--grace", "0", run)


def test_without_a_checkpoint_it_begins_anew_and_says_so(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "import sys; print(sys.argv[1:]); sys.exit(len(sys.argv) - 2)"})
    (project / "remote-train.toml").write_text(SETTINGS)
    run = laptop.type(project, "run", "train.py").expect(1).run_id()
    done = laptop.ok(project, "resume", "--", "--once")
    assert done.out == b"['--once']\n"
    assert f"{run} has no checkpoint, here or on box: it begins anew" in done.err


def test_what_has_no_arguments_to_resume_is_told_of(laptop: Laptop, project: Path) -> None:
    write_project(
        project, {"train.py": "import os; print(os.path.exists('a.pt')); open('a.pt', 'w').write('1')"}
    )
    laptop.ok(project, "run", "train.py")
    done = laptop.ok(project, "resume")
    assert done.out == b"True\n"
    assert "no resume_args in the project file" in done.err


@pytest.mark.usefixtures("box", "other")
def test_a_script_of_the_nanogpt_family_is_told_to_resume(laptop: Laptop, project: Path) -> None:
    script = """
import os, sys
out_dir = "out"
init_from = "scratch"
device = "cuda"
compile = True
exec(open("configurator.py").read())
print(init_from, device, compile, os.path.exists("out-tiny/ckpt.pt"), *sys.argv[1:], flush=True)
os.makedirs(out_dir, exist_ok=True)
open(out_dir + "/ckpt.pt", "w").write("state")
"""
    configurator = """
for arg in sys.argv[1:]:
    if "=" not in arg:
        exec(open(arg).read())
    else:
        key, value = arg[2:].split("=")
        globals()[key] = {"True": True, "False": False}.get(value, value)
"""
    config = 'out_dir = "out-tiny"\n'
    write_project(project, {"train.py": script, "configurator.py": configurator, "tiny.py": config})
    laptop.ok(project, "run", "train.py", "tiny.py")
    done = laptop.ok(project, "resume", "--host", "other")
    words = b"resume cpu False True tiny.py --init_from=resume --device=cpu --compile=False\n"
    assert done.out == words


@pytest.mark.slow
@pytest.mark.usefixtures("box", "other")
def test_a_folder_goes_along_whole(laptop: Laptop, project: Path) -> None:
    script = """
import os, sys
for step in (1, 2):
    folder = f"out/checkpoint-{step}"
    if os.path.isdir(folder):
        print(step, sorted(os.listdir(folder)), open(folder + "/state.json").read(), flush=True)
        continue
    os.makedirs(folder)
    for name in ("model.dat", "optimizer.dat", "state.json"):
        open(f"{folder}/{name}", "w").write(name + str(step))
sys.exit("--resume" not in sys.argv)
"""
    write_project(project, {"train.py": script, "remote-train.toml": 'resume_args = ["--resume"]\n'})
    run = laptop.type(project, "run", "-d", "train.py").run_id()
    poll(lambda: laptop.ok(project, "ps", "--json").event("run")["state"] == "ended", "its end")
    done = laptop.ok(project, "resume", "--host", "other", run)
    assert done.out == b"2 ['model.dat', 'optimizer.dat', 'state.json'] state.json2\n"


def test_nothing_leads_to_a_run_of_an_older_version(laptop: Laptop, project: Path) -> None:
    write_project(project, {"train.py": "pass"})
    run = laptop.ok(project, "run", "train.py").run_id()
    path = project / "runs" / run / "run.json"
    path.write_text(json.dumps({key: value for key, value in record(project, run).items() if key != "job"}))
    for command in (["resume", run], ["run", "--from", run]):
        refused = laptop.type(project, *command).expect(2)
        assert f"{run} was started by an older version, or from another laptop" in refused.err
        assert "remote-train run" in refused.err


@pytest.mark.usefixtures("other")
def test_a_host_that_is_gone_is_gone_on_without(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    """From what was pulled; when the host is there again, what runs on there is stopped."""
    run = hold(laptop, project, tmp_path / "go", 4)
    laptop.ok(project, "pull", run)
    old = laptop.hosts_file.read_text()
    laptop.hosts_file.write_text(old.replace(str(box.sshd.port), "9"))
    assert "--host NAME" in laptop.type(project, "resume", run).expect(10).err
    (tmp_path / "go").touch()
    done = laptop.ok(project, "resume", "--host", "other", run)
    assert done.out.startswith(b"args --resume\nbegins at 4\n")
    assert "box" in done.err


def test_what_may_still_run_is_not_begun_anew(
    laptop: Laptop, box: Box, other: Box, project: Path, tmp_path: Path
) -> None:
    """Its hosts are looked up where they were when it was started."""
    known = tmp_path / "mine.toml"
    known.write_text(laptop.hosts_file.read_text())
    laptop.write_hosts("")
    write_project(project, {"train.py": COUNTING, "remote-train.toml": SETTINGS})
    gate = f"GATE={tmp_path / 'go'}:1"
    run = laptop.ok(project, "run", "-d", "--hosts-file", str(known), "--env", gate, "train.py").run_id()
    assert f"{run} is running on box" in laptop.type(project, "resume", run).expect(2).err
    there = known.read_text()
    known.write_text(there.replace(str(box.sshd.port), "9"))
    refused = laptop.type(project, "resume", "--host", "other", run).expect(2)
    assert f"{run} has no checkpoint to go on from, and may still run on box" in refused.err
    assert "--anew" in refused.err
    assert [item.get("superseded") for item in record(project, run)["attempts"]] == [None]
    laptop.ok(project, "resume", "-d", "--anew", "--host", "other", run)
    assert [item.get("superseded") for item in record(project, run)["attempts"]] == [True, None]
    (tmp_path / "go").touch()
    known.write_text(there)
    assert "begins at 1" in laptop.ok(project, "logs", "-f", "--hosts-file", str(known), run).out.decode()
    poll(lambda: not box.processes(run), "the end of the copy on box")
    assert other.root.exists()


@pytest.mark.slow
def test_a_host_that_is_named_no_more_is_gone_on_without(
    laptop: Laptop, other: Box, project: Path, tmp_path: Path
) -> None:
    run = hold(laptop, project, tmp_path / "go", 4)
    laptop.ok(project, "pull", run)
    laptop.write_hosts(f'default = ["other"]\n[hosts.other]\n{other.describe()}')
    (tmp_path / "go").touch()
    assert "'box'" in laptop.type(project, "resume", run).expect(2).err
    done = laptop.ok(project, "resume", "--host", "other", f"box:{run}")
    assert done.out.startswith(b"args --resume\nbegins at 4\n")
    assert "no host is named box any more" in done.err


@pytest.mark.usefixtures("other")
def test_a_checkpoint_that_was_changed_here_is_not_gone_on_from(
    laptop: Laptop, box: Box, project: Path, tmp_path: Path
) -> None:
    run = hold(laptop, project, tmp_path / "go", 4)
    laptop.ok(project, "pull", run)
    laptop.hosts_file.write_text(laptop.hosts_file.read_text().replace(str(box.sshd.port), "9"))
    place = project / "runs" / run / "files" / "out" / "ckpt.pt"
    times = place.stat()
    place.write_text("8")
    os.utime(place, ns=(times.st_mtime_ns, times.st_mtime_ns))  # all but the hash says that it is the old one
    (tmp_path / "go").touch()
    done = laptop.ok(project, "resume", "--no-pull", "--host", "other", run)
    assert "it begins anew" in done.err
    assert done.out.startswith(b"args\nbegins at 1\n")


@pytest.mark.usefixtures("box", "other")
def test_lost_code_is_named(laptop: Laptop, project: Path, tmp_path: Path) -> None:
    run = hold(laptop, project, tmp_path / "go", 3)
    shutil.rmtree(laptop.home / "state" / "remote-train" / "client" / "blobs")
    (project / "train.py").write_text("pass")
    before = record(project, run)
    refused = laptop.type(project, "resume", "--host", "other", run).expect(20)
    assert "train.py" in refused.err
    after = record(project, run)
    assert {key: after[key] for key in STANDING} == {key: before[key] for key in STANDING}
    (tmp_path / "go").touch()
    done = laptop.ok(project, "resume", run)  # its own host still has them
    assert done.out.startswith(b"args --resume\nbegins at 3\n")


@pytest.mark.usefixtures("box", "other")
def test_a_new_run_from_another(laptop: Laptop, project: Path, tmp_path: Path) -> None:
    script = (
        'import os, sys; print(*sys.argv[1:], os.environ["WHO"], os.path.exists("a.pt")); open("a.pt", "w")'
    )
    write_project(project, {"train.py": script})
    run = laptop.ok(project, "run", "--env", "WHO=me", "train.py", "--lr=1").run_id()
    (project / "train.py").write_text("raise SystemExit(9)")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    done = laptop.ok(elsewhere, "run", "--from", run, "--host", "other", "--name", "second", "--", "--lr=2")

    assert done.out == b"--lr=1 --lr=2 me False\n"
    made = record(project, "second")
    assert (made["from"], made["host"], len(made["attempts"])) == (run, "other", 1)
    assert made["package"] == record(project, run)["package"]
    args = ("run", "--from", "second", "--secret", "WHO", "--json")
    third = laptop.ok(project, *args, env={"WHO": "you, who are a secret now"})
    assert third.event("started")["host"] == "other"
    output = "".join(event["data"] for event in third.events if event["event"] == "output")
    assert output == "--lr=1 --lr=2 you, who are a secret now False\n"
    made = record(project, third.event("started")["run"])
    assert (made["job"]["env"], made["job"]["secrets"]) == ({}, ["WHO"])
    assert "who are a secret" not in json.dumps(made)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train.py"], "a run has one script"),
        (["-m", "train"], "a run has one script"),
        (["--include", "*"], "--include and --exclude"),
        (["--exclude", "*"], "--include and --exclude"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_go_with_from(laptop: Laptop, project: Path, args: list[str], words: str) -> None:
    assert words in laptop.type(project, "run", "--from", "any", *args).expect(2).err
