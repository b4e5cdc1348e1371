"""What counts as the same configuration, and what may then be said of two runs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from remote_train.metrics.comparison import Side, Tally, compare, find_common_step
from remote_train.metrics.configuration import Configuration, contrast, parse_arguments
from remote_train.metrics.rated import settle
from remote_train.metrics.record import MetricRecord
from remote_train.show.sides import render_comparison

BASE = Configuration(
    target="train.py",
    arguments=("config.py", "--lr=1e-3", "--batch_size", "12"),
    processes=1,
    package="p",
    files={"train.py": "1", "a.py": "2"},
    data={"data/x": "d" * 64},
    env={"SEED": "1"},
    secrets=frozenset({"KEY"}),
    settings={"n_layer": 4},
)


def names(a: Configuration, b: Configuration) -> list[str]:
    found = contrast(a, b)
    # whichever way round, the same names
    assert [item.name for item in contrast(b, a).settings] == [item.name for item in found.settings]
    return list(map(str, found.settings))


@pytest.mark.parametrize(
    ("arguments", "words", "options"),
    [
        (("a", "--b=1", "c"), ("a", "c"), {"b": "1"}),
        (("--b", "1", "c"), ("c",), {"b": "1"}),
        (("--b", "--c", "-1"), (), {"b": "set", "c": "-1"}),
        (("--b=1", "--b=2"), (), {"b": "1 2"}),
        (("model.width=3", "+x=4"), (), {"model.width": "3", "x": "4"}),
        (("--", "-5"), ("--", "-5"), {}),
        (("--text=a b\nc",), (), {"text": "a b\nc"}),
        (("-lr", "3"), (), {"lr": "3"}),
        (("--last",), (), {"last": "set"}),
    ],
)
def test_arguments_are_told_apart(
    arguments: tuple[str, ...], words: tuple[str, ...], options: dict[str, str]
) -> None:
    assert parse_arguments(arguments) == (words, options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"arguments": ("--batch-size=12", "--lr", "0.001", "config.py")},
        {"package": "q"},  # another id, the same files: it is the rows that are compared
        {"settings": {}},  # prints none: that says nothing
        {"arguments": (*BASE.arguments, "--out_dir=there", "--wandb-run-name", "b")},
        {"arguments": (*BASE.arguments, "--device=cuda", "--compile=True", "--dtype", "bfloat16")},
    ],
)
def test_what_is_the_same_configuration(changes: dict[str, Any]) -> None:
    other = replace(BASE, **changes)
    if "package" in changes:
        assert names(BASE, other) == ["code: modes of files"]
        return
    assert contrast(BASE, other).same
    assert names(BASE, other) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arguments": ("config.py", "--lr=1e-3", "--batch_size=64")}, "batch_size (12 and 64)"),
        ({"arguments": ("config.py", "--lr=1e-3")}, "batch_size (12 and not set)"),
        ({"arguments": ("other.py", "--lr=1e-3", "--batch-size=12")}, "argument 1 (config.py and other.py)"),
        ({"target": "main.py"}, "script (train.py and main.py)"),
        ({"target": "-m pkg"}, "script (train.py and -m pkg)"),
        ({"processes": 2}, "processes (1 and 2)"),
        ({"package": "q", "files": {"train.py": "1", "a.py": "3"}}, "code: a.py"),
        ({"package": "q", "files": {"train.py": "1"}}, "code: a.py"),
        (
            {"package": "q", "files": {f"{n}.py": "1" for n in "cdefg"}},
            "code: a.py, c.py, d.py, e.py and 3 more",
        ),
        ({"data": {"data/x": "e" * 64}}, f"data data/x ({'d' * 12} and {'e' * 12})"),
        ({"data": {}}, f"data data/x ({'d' * 12} and not set)"),
        ({"env": {"SEED": "2"}}, "variable SEED (one value and another)"),
        ({"env": {}}, "variable SEED (set and not set)"),
        ({"secrets": frozenset()}, "variable KEY (a secret and not set)"),
        ({"checkpoint": "ckpt.pt 0123"}, "checkpoint (none and ckpt.pt 0123)"),
        ({"settings": {"n_layer": 6}}, "n_layer (4 and 6)"),
        ({"settings": {"n_layer": 4, "dropout": "0.2"}}, "dropout (not set and 0.2)"),
    ],
)
def test_what_differs_is_named(changes: dict[str, Any], said: str) -> None:
    other = replace(BASE, **changes)
    assert names(BASE, other) == [said]
    assert not contrast(BASE, other).same


def test_pictures_and_documents_are_no_code() -> None:
    files = {**(BASE.files or {}), "y.svg": "3", "docs/README.md": "4"}
    found = contrast(BASE, replace(BASE, package="q", files=files))
    assert found.same
    assert list(map(str, found.labels)) == ["files: docs/README.md, y.svg"]
    found = contrast(BASE, replace(BASE, package="q", files={**files, "input.txt": "5"}))
    assert list(map(str, found.settings)) == ["code: input.txt"]
    assert not found.same


def test_a_setting_that_an_argument_gave_is_named_once() -> None:
    a = replace(BASE, arguments=("--n-layer=4",), settings={"n_layer": 4, "device": "cpu"})
    b = replace(BASE, arguments=("--n_layer=6",), settings={"n_layer": 6, "device": "cuda"})
    assert names(a, b) == ["n_layer (4 and 6)"]
    assert list(map(str, contrast(a, b).device)) == ["device (cpu and cuda)"]


def test_secrets_and_values_are_never_shown() -> None:
    a = replace(BASE, env={"TOKEN": "hunter2"}, secrets=frozenset({"KEY"}))
    b = replace(BASE, env={"TOKEN": "hunter3"}, secrets=frozenset({"KEY", "MORE"}))
    assert "hunter" not in " ".join(names(a, b))
    assert names(a, b) == ["variable MORE (not set and a secret)", "variable TOKEN (one value and another)"]


@pytest.mark.parametrize(
    ("changes", "unknown"),
    [
        ({"package": None, "files": None}, "the code"),
        ({"package": "q", "files": None}, "which files of the code differ"),
        ({"data": {"data/x": None}}, "whether data data/x is the same"),
        ({"processes": None}, "the processes"),
    ],
)
def test_what_is_not_known_is_never_the_same(changes: dict[str, Any], unknown: str) -> None:
    found = contrast(BASE, replace(BASE, **changes))
    assert found.unknown == (unknown,)
    assert found.settings == ()
    assert not found.same


def test_a_package_that_was_not_kept_is_itself() -> None:
    assert contrast(replace(BASE, files=None), replace(BASE, files=None)).same


def make_side(run: str, records: list[MetricRecord]) -> Side:
    sources = {record.source: [r for r in records if r.source == record.source] for record in records}
    tally = Tally(settle(of_source[-1], of_source) for of_source in sources.values())
    for record in records:
        tally.add(record)
    return Side(run, "host", "device", 60.0, None, 1, tally)


def steps(seconds: float, source: str = "log:nanogpt", **more: Any) -> list[MetricRecord]:
    """Ten steps of 768 tokens, the first a slow one."""
    return [
        MetricRecord(
            1,
            step=step,
            loss=4 - step / 10,
            run_time=step * seconds,
            step_seconds=seconds * (20 if step == 1 else 1),
            tokens_per_second=768 / (seconds * (20 if step == 1 else 1)),
            source=source,
            **{"dtype": "float32", "mfu": 0.1, "peak_flops": 1e12, **more},
        )
        for step in range(1, 11)
    ]


def verdict(a: list[MetricRecord], b: list[MetricRecord], **changes: Any) -> dict[str, Any]:
    return compare(make_side("one", a), make_side("two", b), contrast(BASE, replace(BASE, **changes)))


def test_a_gain_is_stated_for_the_same_configuration_alone() -> None:
    said = verdict(steps(0.32), steps(0.1))
    assert said["sentence"] == "two is 3.20x faster per step than one, on the same configuration"
    assert said["same"]
    assert said["ratio"] == pytest.approx(3.2)

    said = verdict(steps(0.32), steps(0.1), processes=2)
    assert "faster" not in said["sentence"]
    assert "no gain and no loss: they differ in processes (1 and 2)" in said["sentence"]
    assert not said["same"]


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (0.3, "two is 1.07x faster"),
        (0.321, "two is as fast per step as one"),
        (0.64, "two is 2.00x slower"),
        (0.0001, "two is 3,200x faster"),
        (0.02, "two is 16x faster"),
    ],
)
def test_the_ratio_in_words(b: float, words: str) -> None:
    assert verdict(steps(0.32), steps(b))["sentence"].startswith(words)


def test_dtypes_and_device_arguments_stand_beside_the_ratio() -> None:
    said = verdict(steps(0.32), steps(0.01, dtype="bfloat16"), arguments=(*BASE.arguments, "--device=cuda"))
    assert said["sentence"].endswith(
        "on the same configuration; beside it: device (not set and cuda), dtype (float32 and bfloat16)"
    )


def test_tokens_of_a_step_tell_when_nothing_else_does() -> None:
    other = [replace(record, tokens_per_second=2 * (record.tokens_per_second or 0)) for record in steps(0.1)]
    said = verdict(steps(0.32), other)
    assert said["differences"] == ["tokens per step (768 and 1,536)"]
    assert not said["same"]


def test_a_step_time_that_is_not_known_gives_no_ratio() -> None:
    said = verdict(steps(0.32), [replace(record, step_seconds=None) for record in steps(0.1)])
    assert said["ratio"] is None
    assert said["b"]["step_seconds"] is None
    assert "the step time of two is not known" in said["sentence"]


def test_figures_of_different_sources_are_never_divided() -> None:
    meter = [replace(record, source="meter", step=None, loss=None) for record in steps(0.1)]
    said = verdict(steps(0.32), meter)
    assert said["ratio"] is None
    assert said["sentence"] == (
        "no gain could be stated: their step times are of different sources, that of one from log:nanogpt and that of"
        " two from meter; the configuration is the same"
    )
    said = verdict(steps(0.32), [*steps(0.16), *meter])
    assert said["ratio"] == pytest.approx(2.0)
    assert (said["b"]["step_seconds"], said["b"]["sources"]["mfu"]) == (pytest.approx(0.16), "log:nanogpt")


def test_a_run_beside_itself_is_no_comparison() -> None:
    side = make_side("one", steps(0.1))
    assert compare(side, side, contrast(BASE, BASE))["sentence"].startswith("one is one run:")


def test_how_a_run_ended_stands_beside_its_figures() -> None:
    failed = replace(make_side("two", steps(0.1)), state="failed", exit="ended with code 1")
    said = compare(make_side("one", steps(0.32)), failed, contrast(BASE, BASE))
    assert (said["b"]["state"], said["b"]["exit"]) == ("failed", "ended with code 1")
    text = render_comparison(said, 60)
    assert "failed" in text
    assert max(map(len, text.splitlines())) <= 60


def test_each_figure_is_of_the_best_source_that_has_it() -> None:
    log = steps(0.3)
    meter = [replace(r, source="meter", step=None, loss=None, mfu=0.2, step_seconds=0.29) for r in steps(0.3)]
    report = [MetricRecord(1, step=10, loss=9.0, run_time=4.0, source="report")]
    side = make_side("one", [*log, *meter, *report]).as_json(10, {})
    assert side["sources"] == {
        "step_seconds": "meter",
        "tokens_per_second": "meter",
        "mfu": "meter",
    }
    assert (side["mfu"], side["step_seconds"]) == (0.2, 0.29)
    assert (side["loss"], side["time_to_step"]) == (9.0, 4.0)


def test_the_losses_are_those_of_all_attempts() -> None:
    second = [replace(r, attempt=2, step=(r.step or 0) + 10) for r in steps(0.3)]
    side = make_side("one", [*steps(0.3), *second])
    assert sorted(side.tally.losses) == list(range(1, 21))


def test_the_common_step_is_the_last_of_both() -> None:
    a, b = make_side("a", steps(0.1)).tally, make_side("b", steps(0.1)[::3]).tally
    assert find_common_step(a, b) == 10
    assert find_common_step(make_side("a", steps(0.1)[:9]).tally, b) == 7
    assert find_common_step(a, Tally()) is None


def test_nothing_known_is_null_and_never_a_figure() -> None:
    said = compare(
        make_side("a", [MetricRecord(1, loss=math.nan)]),
        make_side("b", [MetricRecord(1)]),
        contrast(BASE, BASE),
    )
    for side in (said["a"], said["b"]):
        assert {side[key] for key in ("mfu", "step_seconds", "peak_flops", "loss", "common_step")} == {None}
