"""Pictures: what is asked for is in them, once, and the same lines give the same bytes."""

from __future__ import annotations

import math
import struct
from xml.etree import ElementTree as ET

import pytest

from remote_train.metrics.series import Line
from remote_train.show.plot import render_plot

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"
POINTS = tuple((float(x), 3.0 - x / 100) for x in range(100))


def lines(
    runs: int = 2, whats: tuple[str, ...] = ("loss", "mfu"), axes: tuple[str, ...] = ("step", "time")
) -> list[Line]:
    return [
        Line(f"run{n}", "box", what, axis, POINTS, "log:nanogpt")
        for n in range(runs)
        for what in whats
        for axis in axes
    ]


def find_lines(svg: bytes) -> dict[str, str]:
    """Return the curves of a picture by their id, as path data."""
    root = ET.fromstring(svg)
    groups = [group for group in root.iter(f"{SVG}g") if str(group.get("id")).startswith("line-")]
    return {str(group.get("id")): str(path.get("d")) for group in groups for path in group.iter(f"{SVG}path")}


def words(svg: bytes) -> list[str]:
    return [str(text.text) for text in ET.fromstring(svg).iter(f"{SVG}text")]


def test_a_svg_has_each_line_once_and_each_run_named_once() -> None:
    svg = render_plot(lines(), "svg")
    found = find_lines(svg)
    assert sorted(found) == sorted(
        f"line-{n}-{what}-{axis}" for n in (0, 1) for what in ("loss", "mfu") for axis in ("step", "time")
    )
    assert all(path.count("L") == 99 for path in found.values())
    assert [word for word in words(svg) if word.startswith("run")] == ["run0 on box", "run1 on box"]
    assert render_plot(lines(), "svg") == svg


def test_a_gap_breaks_the_line() -> None:
    points = (*POINTS[:40], (40.0, math.nan), *POINTS[41:])
    (path,) = find_lines(render_plot([Line("r", "h", "loss", "step", points, "report")], "svg")).values()
    assert (path.count("M"), path.count("L")) == (2, 97)


def test_axes_are_plain_numbers_and_say_what_they_are() -> None:
    points = tuple((float(x) * 1000, 1e6 + x) for x in range(100))
    line = [
        Line("r", "", "tokens", "step", points, "meter"),
        Line("r", "", "tokens", "time", points, "meter"),
    ]
    said = words(render_plot(line, "svg"))
    assert {"step", "hours since the run began", "tokens/s", "(from meter)"} <= set(said)
    assert "1,000,000" in said
    assert not [word for word in said if "e6" in word or "+1" in word]


def test_a_png_is_one_of_a_sensible_size() -> None:
    png = render_plot(lines(9), "png", log=True)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert 1000 < width < 2500
    assert 500 < height < 2500
    assert png.endswith(b"IEND\xaeB`\x82")


def test_a_name_from_elsewhere_is_neutral_in_the_picture() -> None:
    svg = render_plot([Line("_r\x1b[31m$x^2$<b>", "h", "loss", "step", POINTS, "report")], "svg")
    assert b"\x1b" not in svg
    assert "_r\\x1b[31m$x^2$<b> on h" in words(svg)
