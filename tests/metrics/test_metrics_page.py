"""The tables of docs/mfu.md are the data's, and every parser's family is among them."""

from __future__ import annotations

from pathlib import Path

from remote_train.metrics.families import A100, FAMILIES, H100
from remote_train.metrics.nanogpt import A100_FLOPS
from remote_train.metrics.page import render_families, render_peaks
from remote_train.metrics.parsers import PARSERS
from remote_train.metrics.parsers_large import H100_FLOPS
from remote_train.metrics.peak_table import TABLE

PAGE = (Path(__file__).parents[2] / "docs" / "mfu.md").read_text("utf-8")


def test_the_tables_in_the_docs_are_the_data() -> None:
    for table in (render_families(), render_peaks()):
        assert table in PAGE, "python -m remote_train.metrics.page prints the new ones"


def test_the_peaks_are_all_there_once() -> None:
    lines = [line for line in render_peaks().splitlines() if line.startswith("| ") and line[2] not in "c-"]
    assert len(lines) == len(TABLE)


def test_every_family_that_is_read_is_described() -> None:
    assert {parser.family for parser in PARSERS} - {"bar"} == {family.name for family in FAMILIES}


def test_the_peaks_that_scripts_always_divide_by_are_those_we_reckon_with() -> None:
    assert f"{A100_FLOPS / 1e12:g} TFLOP/s" in A100
    assert f"{H100_FLOPS / 1e12:g} TFLOP/s" in H100
