"""From the records of a run to its configuration, and what of two is known to be the same."""

from __future__ import annotations

from dataclasses import replace

from remote_train.comparing import choose_plan, make_configuration
from remote_train.metrics.configuration import Configuration, contrast
from tests.metrics.test_comparison import BASE


def test_data_of_two_hosts_is_not_known_to_be_the_same() -> None:
    here = replace(BASE, data={"data/x": None}, lying={"data/x": "box:/mnt/x"})
    assert contrast(here, here).same
    there = contrast(here, replace(here, lying={"data/x": "other:/mnt/x"}))
    assert (there.unknown, there.same) == (("whether data data/x is the same",), False)


def test_every_digit_of_a_seed_counts() -> None:
    one, other, third = (
        replace(BASE, arguments=(f"--seed={seed}",)) for seed in (2**53, 2**53 + 1, f"{2**53}.0")
    )
    assert not contrast(one, other).same
    assert contrast(one, third).same


def test_a_configuration_is_read_from_the_records_of_a_run() -> None:
    plan = {
        "argv": ["-m", "pkg.train", "--lr=1"],
        "cwd": "sub",
        "processes": 2,
        "host": "box",
        "links": {"data/a": "/mnt/a"},
        "data": {"data/b": "id"},
        "env": {"HF_HOME": "/x"},
        "restore": [{"path": "out/ckpt.pt", "sha256": "f" * 64}],
    }
    job = {"env": {"SEED": "1"}, "secrets": ["KEY"]}
    made = make_configuration({"package": "p", "job": job}, None, {}, plan)
    assert made == Configuration(
        target="-m pkg.train",
        arguments=("--lr=1",),
        processes=2,
        package="p",
        data={"data/a": None, "data/b": "id"},
        lying={"data/a": "box:/mnt/a"},
        env={"SEED": "1"},
        secrets=frozenset({"KEY"}),
        checkpoint=f"out/ckpt.pt {'f' * 12}",
    )
    named = make_configuration({"package": "p", "job": {**job, "env": {}}}, None, {}, plan)
    assert named.env == {}  # the host's own variables are not the run's
    alone = make_configuration({"package": None}, None, {}, {"argv": ["train.py"], "cwd": "sub"})
    assert (alone.target, alone.package, alone.processes) == ("sub/train.py", None, None)


def test_the_configuration_is_that_of_the_attempt_whose_pace_it_is() -> None:
    """A run that went on from a GPU to a CPU, where the project file has it train smaller batches."""
    first = {"argv": ["train.py", "--lr=1", "--batch=64"], "processes": 2}
    restored = [{"path": "out/ckpt.pt", "sha256": "f" * 64}]
    then = {
        "argv": ["train.py", "--lr=1", "--init_from=resume", "--batch=12"],
        "processes": 1,
        "restore": restored,
    }
    family = {"resume_args": ["--init_from=resume"]}
    record = {"attempts": [{"plan": first}, {"plan": then}], "job": {"spec": {}, "family": family}}
    assert choose_plan(record) == {
        "argv": ["train.py", "--lr=1", "--batch=12"],
        "processes": 1,
        "restore": None,
    }
    alone = {"attempts": [{"plan": then}], "job": record["job"]}
    assert choose_plan(alone) == then
