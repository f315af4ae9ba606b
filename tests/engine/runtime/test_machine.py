"""What calibration makes of measured times, and that its command writes a profile the simulator reads."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from engine.hardware import HardwareProfile, Link, load_hardware  # noqa: E402  # needs torch
from engine.runtime import machine, measure  # noqa: E402
from engine.runtime.machine import ascending, link_of  # noqa: E402
from engine.runtime.measure import Figure  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.validate import profile_warnings  # noqa: E402
from tracekit.errors import HardwareError  # noqa: E402

SIZES = (256, 1 << 14, 1 << 18, 1 << 22, 1 << 26)


def test_a_known_link_is_found_again() -> None:
    latency, rate = 20_000.0, 4e9
    found, rates = link_of(SIZES, [latency + size / rate * 1e9 for size in SIZES])
    assert found == pytest.approx(latency, rel=0.01)
    assert [r.bytes for r in rates] == [1 << 18, 1 << 22, 1 << 26]  # what hardly exceeds the latency tells nothing
    assert all(r.bytes_per_s == pytest.approx(rate, rel=0.01) for r in rates)


@given(st.lists(st.floats(1, 1e9), min_size=5, max_size=5))
def test_whatever_is_measured_is_a_valid_link(times: list[float]) -> None:
    try:
        latency, rates = link_of(SIZES, times)
    except HardwareError as error:
        assert "\n" not in str(error)
        return
    Link(host_to_device_bytes_per_s=rates[-1].bytes_per_s, latency_ns=latency, copy_engines=1, rates=rates)


@given(st.lists(st.floats(0, 1e6)))
def test_ascending_ascends_and_keeps_the_sum(values: list[float]) -> None:
    found = ascending(values)
    assert all(a <= b for a, b in pairwise(found))
    assert sum(found) == pytest.approx(sum(values))
    assert ascending(found) == found


def test_a_figure_tells_its_spread() -> None:
    figure = Figure.of("copy of 1000 bytes", [1000.0, 2000.0, 3000.0, 4000.0, 1e9])
    assert (figure.low_ns, figure.ns, figure.high_ns) == (2000.0, 3000.0, 4000.0)
    assert str(figure) == "copy of 1000 bytes: 3 us [2 us, 4 us] (5 samples)"
    assert figure.gigabytes(6000) == "2.00 GB/s [1.50, 3.00]"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "COLD_BYTES", 1 << 24)
    monkeypatch.setattr(measure, "WIDTH", 256)
    monkeypatch.setattr(machine.calibrate_machine, "__kwdefaults__", _smaller(machine.calibrate_machine))


def _smaller(function: Any) -> dict[str, Any]:
    return function.__kwdefaults__ | {"copy_sizes": SIZES[:-1], "tokens": (1, 8), "max_new_tokens": 8}


@pytest.mark.usefixtures("small")
def test_the_command_writes_a_profile_that_is_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "h.toml"
    arguments = [
        "calibrate",
        "--output",
        str(output),
        "--rounds",
        "2",
        "--repeats",
        "3",
        "--name",
        "mine",
        "--weights",
        "hqq-4bit",
    ]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    profile = load_hardware(output)
    assert isinstance(profile, HardwareProfile) and profile.calibrated and profile.name == "mine"
    assert profile_warnings(profile, "cpu") == []
    assert found["profile"]["link"]["latency_ns"] == profile.link.latency_ns
    assert {figure["samples"] for figure in found["figures"]} == {2, 3, 30}
    for figure in found["figures"]:  # every figure stands in the profile, with its spread
        assert any(line.startswith(figure["what"] + ": ") and "[" in line for line in profile.source)
    assert profile.overhead.per_layer_ns > 0 and profile.device.compute_flops_per_s > 10**6
    assert any(figure["what"].startswith("expanding hqq-4bit, 256 x 256") for figure in found["figures"])
    assert run(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*arguments[:2], str(tmp_path / "no" / "h.toml")]) == 2
    assert "there is no directory" in capsys.readouterr().err
    assert run(["calibrate", "--output", str(tmp_path / "x.toml"), "--weights", "bf16"]) == 2
    assert "needs no expansion" in capsys.readouterr().err
