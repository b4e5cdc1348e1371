"""An explanation as text: every figure that is there, nothing of what is not, and no escape of a stranger's."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from remote_train.explaining import Explanation
from remote_train.metrics.diagnosis import diagnose
from remote_train.metrics.floors import DeviceView
from remote_train.metrics.profile import Profile, parse_profile
from remote_train.metrics.telemetry import HostUse, parse_telemetry
from remote_train.show.explanation import list_use_lines, render_explanation
from remote_train.show.tables import Look, render_run
from tests.metrics.meter_lines import count, gpu_host, host, sample, start, window

DEVICE = DeviceView("cpu", "a CPU", peak=0.5e12, peak_source="measured: 2048x2048 matmul", dispatch=25e-6)


def explain(
    profile: Profile, use: HostUse, *notes: str, device: DeviceView | None = DEVICE
) -> dict[str, Any]:
    found = diagnose(profile, device or DEVICE, use)
    return Explanation("run-1", 1, "box", found, profile, use, device, notes).as_json()


def test_everything_that_is_known_stands_there() -> None:
    profile = parse_profile([start(), count(), window(), window(2.0, data=0.5, median=0.05), sample()])
    text = render_explanation(explain(profile, parse_telemetry([host()]), "a note"))
    lines = text.splitlines()
    assert lines[0].endswith(".")
    assert lines[1] == "(a note)"
    assert (
        "  50.0 ms a step · 15,360 tok/s · 80.0 GFLOP/s · MFU 16.0 % of 500 GFLOP/s (measured: 2048x2048 matmul)"
        in lines
    )
    bars = {line.split("  ")[1]: line for line in lines if "##" in line}
    assert bars["waiting for data"].count("#") == round(0.25 * 30)
    assert "25 %" in bars["waiting for data"]
    assert "400 operations x 25.0 us, measured" in text
    assert "CPU 50 % busy · the run takes 1.0 CPUs · 3000 MHz · 60 C" in text
    assert "memory 2.00 GB of 8.00 GB" in text
    assert "a fused optimizer: 1." in text
    assert "AdamW(…, fused=True)" in text
    assert "but    it changes the training" in text


def test_what_is_unknown_is_left_out() -> None:
    text = render_explanation(explain(Profile(), HostUse(), device=None))
    assert text.splitlines() == [
        "The meter timed no step of this run, so nothing can be said of where its time goes."
    ]


def test_the_peak_of_several_processes_is_of_each() -> None:
    profile = parse_profile([start(), count(), window()])
    text = render_explanation(explain(profile, HostUse(), device=replace(DEVICE, processes=2)))
    assert "(each of 2 processes)" in text


def test_a_host_cannot_write_to_the_terminal() -> None:
    evil = "\x1b[2J\x07\u202eevil"
    lines = [start(optimizer="AdamW"), count(dtype=evil, why=evil), window(), sample()]
    use = parse_telemetry([gpu_host(uuid=evil, throttle=[evil, "power"])])
    text = render_explanation(
        explain(parse_profile(lines), use, evil, device=replace(DEVICE, peak_source=evil))
    )
    assert "evil" in text
    assert not any(character in text for character in "\x1b\x07\u202e")


def test_a_gpu_in_one_line_and_utilisation_not_called_mfu() -> None:
    use = parse_telemetry([gpu_host(throttle=["power", "idle"], others=1)])
    (line,) = list_use_lines(asdict(use))
    assert line == (
        "GPU 0: a kernel ran 90 % of the time · 1.00 GB in use · 200 W of 285 · 2600 MHz · 60 C"
        " · held down by power (100 % of the samples) · other processes: 1"
    )


def test_show_has_the_sentence_and_the_load() -> None:
    use = asdict(parse_telemetry([host()]))
    text = render_run({"run": "r", "bottleneck": "It is slow.", "telemetry": use}, Look(80, False, False))
    assert "bottleneck  It is slow." in text
    assert "load        CPU 50 % busy" in text
    assert "load" not in render_run({"run": "r", "telemetry": asdict(HostUse())}, Look(80, False, False))
