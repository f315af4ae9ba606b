"""What calibration makes of measured times, and that its command writes a profile the simulator reads."""

import json
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from engine.hardware import Expansion, HardwareProfile, Link, load_hardware  # noqa: E402  # needs torch
from engine.runtime.calibration import host_probes, machine_profile, power, probes  # noqa: E402
from engine.runtime.calibration.expansion import by_kind, expansion_of  # noqa: E402
from engine.runtime.calibration.machine_profile import link_of  # noqa: E402
from engine.runtime.calibration.probes import Figure  # noqa: E402
from engine.runtime.calibration.repeated import ascending, margin, rank, repeated  # noqa: E402
from experiments.cli.main import run  # noqa: E402
from experiments.validation.comparison import profile_warnings  # noqa: E402
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
    figure = Figure.of("copy of 1000 bytes", [1000.0, 2000.0, 3000.0, 4000.0, 7000.0])
    assert (figure.low_ns, figure.ns, figure.high_ns) == (2000.0, 3000.0, 4000.0)
    assert str(figure) == "copy of 1000 bytes: 3 us [2 us, 4 us] (5 samples, +-100.0 %, NOT within 5 %)"
    assert figure.gigabytes(6000) == "2.00 GB/s [1.50, 3.00]"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(probes, "COLD_BYTES", 1 << 24)
    monkeypatch.setattr(probes, "WIDTH", 256)
    monkeypatch.setattr(host_probes.disk, "__defaults__", (1 << 20,))
    defaults: Any = power.power
    quick = defaults.__kwdefaults__ | {"rapl": tmp_path / "none", "seconds": 0.01}
    monkeypatch.setattr(defaults, "__kwdefaults__", quick)
    function: Any = machine_profile.calibrate_machine
    smaller = function.__kwdefaults__ | {"copy_sizes": SIZES[:-1], "tokens": (1, 8)}
    monkeypatch.setattr(function, "__kwdefaults__", smaller)
    monkeypatch.setattr("experiments.measuring.MAX_NEW_TOKENS", 8)


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
        "9",
        "--name",
        "mine",
        "--weights",
        "hqq-4bit,hqq-2bit",
        "--disk",
        str(tmp_path),
    ]
    assert run([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    profile = load_hardware(output)
    assert isinstance(profile, HardwareProfile) and profile.calibrated and profile.name == "mine"
    assert profile_warnings(profile, "cpu") == []
    assert found["profile"]["link"]["latency_ns"] == profile.link.latency_ns
    assert all(figure["samples"] >= 2 and figure["margin"] >= 0 for figure in found["figures"])
    assert any("medians are NOT known within 5 %" in line for line in profile.source)
    for figure in found["figures"]:  # every figure stands in the profile, with its spread
        assert any(line.startswith(figure["what"] + ": ") and "[" in line for line in profile.source)
    assert profile.overhead.per_layer_ns > 0 and profile.device.compute_flops_per_s > 10**6
    assert any(figure["what"].startswith("expanding hqq-4bit, an expert of 98304") for figure in found["figures"])
    assert [(one.bits, one.meta) for one in profile.engine.expansions] == [(2, True), (4, False)]
    assert profile.cpu is not None and profile.disk is not None
    assert list(tmp_path.iterdir()) == [output]  # the file that was read is gone
    assert run(arguments) == 2
    assert "exists" in capsys.readouterr().err
    assert run([*arguments[:2], str(tmp_path / "no" / "h.toml")]) == 2
    assert "is no directory that can be written to" in capsys.readouterr().err
    assert run(["calibrate", "--output", str(tmp_path / "x.toml"), "--weights", "bf16"]) == 2
    assert "needs no expansion" in capsys.readouterr().err
    assert run(["calibrate", "--output", str(tmp_path / "x.toml"), "--disk", str(tmp_path / "no")]) == 2
    assert "is no directory" in capsys.readouterr().err


def test_an_expansion_is_what_was_measured_at_its_sizes_and_between() -> None:
    """By hand: level below the smallest, a straight line between two, in proportion above the largest; a time that
    falls with size is noise, and pooled."""
    found = expansion_of("hqq-4bit", [1000, 3000, 9000], [200.0, 600.0, 900.0])
    assert (found.bits, found.meta) == (4, False)
    assert [found.ns(weights) for weights in (1, 1000, 2000, 3000, 6000, 9000, 18_000)] == [
        200, 200, 400, 600, 750, 900, 1800,
    ]  # fmt: skip
    assert found.ns(2001) == 401, "rounded up"
    assert expansion_of("hqq-2bit", [1000, 3000], [500.0, 300.0]).points[1].ns == 400
    assert expansion_of("hqq-2bit", [1000], [500.0]).meta, "its scales are codes, too"


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=5, unique=True), st.data())
def test_more_weights_never_take_less(sizes: list[int], data: st.DataObject) -> None:
    sizes.sort()
    times = sorted(data.draw(st.lists(st.floats(1, 1e9), min_size=len(sizes), max_size=len(sizes))))
    found = expansion_of("hqq-3bit", sizes, times)
    asked = sorted(data.draw(st.lists(st.integers(1, 2 * 10**6), min_size=2, max_size=5)))
    taken = [found.ns(weights) for weights in asked]
    assert taken == sorted(taken)


def test_of_several_formats_of_a_kind_the_slowest_counts() -> None:
    given = [
        Expansion(bits=bits, weights_per_s=rate, meta=meta)
        for bits, rate, meta in ((4, 2000, False), (2, 3000, True), (4, 1000, False), (2, 5000, False))
    ]
    found = [(one.bits, one.meta, one.weights_per_s) for one in by_kind(given)]
    assert found == [(2, False, 5000), (2, True, 3000), (4, False, 1000)]


def test_sampling_ends_when_medians_are_known_or_at_its_limit() -> None:
    steady = repeated(lambda _: (1.0, 2.0), 5)
    assert [len(each) for each in steady] == [5, 5] and margin(steady[0]) == 0
    rng = np.random.default_rng(0)
    restless = repeated(lambda _: (1.0, float(rng.lognormal(0, 2))), 5, most=3)
    assert [len(each) for each in restless] == [15, 15] and margin(restless[1]) > 0.05
    assert "NOT within 5 %" in str(Figure.of("x", restless[1])) and "NOT" not in str(Figure.of("x", steady[0]))


def test_a_medians_interval_covers_it() -> None:
    """Of 2,000 sets of lognormal samples, the interval between two of them holds the true median in 94 % or more."""
    rng = np.random.default_rng(1)
    assert [rank(count) for count in (2, 5, 6, 9, 21)] == [0, 0, 0, 1, 5]
    for count in (9, 21, 60):
        draws = np.sort(rng.lognormal(0, 1, (2000, count)), axis=1)
        low, high = draws[:, rank(count)], draws[:, count - 1 - rank(count)]
        assert ((low <= 1) & (high >= 1)).mean() >= 0.94
        assert margin((100 * draws[0]).tolist()) == pytest.approx((high[0] - low[0]) / 2 / np.median(draws[0]))


def test_what_expanding_takes_is_what_the_simulator_charges() -> None:
    """By hand: three million weights at a thousand million per second are 3 ms, and 20 us for the kernels."""
    plain = load_hardware("t4")
    expansions = [
        Expansion(bits=4, weights_per_s=10**9, per_expert_ns=20_000),
        Expansion(bits=2, weights_per_s=5 * 10**8),
    ]
    measured = plain.with_engine(msgspec.structs.replace(plain.engine, expansions=expansions))
    assert measured.expand_ns(4, 3_000_000, 1) == 3_020_000
    assert measured.expand_ns(3, 3_000_000, 1) == 6_000_000  # as near to 2 as to 4: the slower machine's word
    assert measured.expand_ns(8, 3_000_000, 1) == 3_020_000
    assert plain.expand_ns(4, 3_000_000, 320) == 1  # at the bandwidth of its memory
    written = tomllib.loads(measured.to_toml())
    assert msgspec.convert(written, HardwareProfile) == measured
    with pytest.raises(ValueError, match="more than one for 4 bits"):
        msgspec.structs.replace(plain.engine, expansions=[expansions[0]] * 2)


def counters(folder: Path, *microjoules: int) -> None:
    for number, value in enumerate(microjoules):
        package = folder / f"intel-rapl:{number}"
        package.mkdir(exist_ok=True)
        (package / "energy_uj").write_text(str(value))
        (package / "max_energy_range_uj").write_text("1000000000")


def test_power_is_read_from_counters_that_run_over(tmp_path: Path) -> None:
    counters(tmp_path, 100, 999_000_000)
    part = tmp_path / "intel-rapl:0:0"
    part.mkdir()
    (part / "energy_uj").write_text("5")
    turns = 0

    def work() -> None:
        nonlocal turns
        turns += 1
        counters(tmp_path, 100 + turns * 100_000, (999_000_000 + turns * 400_000) % 10**9)
        time.sleep(0.01)

    found, told = power.power(torch.device("cpu"), work, rapl=tmp_path, seconds=0.1)
    assert found is not None and "RAPL" in told
    assert (found.device_idle_w, found.device_busy_w, found.host_idle_w) == (0, 0, 0)
    assert turns > 3 and 0.5 < found.host_busy_w <= 0.5 / 0.01  # half a joule a turn, of a hundredth of a second
    nothing, why = power.power(torch.device("cpu"), work, rapl=tmp_path / "none", seconds=0.1)
    assert nothing is None and "left out" in why and "\n" not in why


def test_the_accelerators_power_is_read_while_it_works(tmp_path: Path) -> None:
    """Not after waiting for it, when it is idle again; and without counters of the processor, which few may read."""
    working = False

    def work() -> None:
        nonlocal working
        working = True
        time.sleep(0.005)

    def finish() -> None:
        nonlocal working
        working = False

    found, told = power.power(
        torch.device("cuda"),
        work,
        rapl=tmp_path,
        seconds=0.3,
        meter=lambda: 300.0 if working else 50.0,
        finish=finish,
    )
    assert found is not None and (found.device_idle_w, found.device_busy_w) == (50, 300)
    assert (found.host_idle_w, found.host_busy_w) == (0, 0) and "counts as 0 W" in told and "\n" not in told
    assert not working
    nothing, why = power.power(torch.device("cuda"), work, rapl=tmp_path, meter=lambda: None, finish=finish)
    assert nothing is None and "accelerator reports none" in why


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="cannot be measured") as caught:
        host_probes.disk(tmp_path / "no", 3, 1 << 20)
    assert "\n" not in str(caught.value)


def test_a_disk_has_as_many_lanes_as_gain_anything() -> None:
    """By hand: alone 1 GB/s; 2 together 1.6, 4 together 2.4, 8 no more than that. Nothing is faster than its parts."""
    found = host_probes.lanes_of(
        10**9, 0.0, [(2, 2 * 10**6, 1.25e6), (4, 4 * 10**6, 4e6 / 2.4), (8, 8 * 10**6, 8e6 / 2.41)]
    )
    assert [(one.reads, round(one.bytes_per_s, -6)) for one in found] == [(2, 1_600_000_000), (4, 2_400_000_000)]
    noise = host_probes.lanes_of(10**9, 0.0, [(2, 2 * 10**6, 1e5)])
    assert [(one.reads, one.bytes_per_s) for one in noise] == [(2, 2 * 10**9)]
    assert host_probes.lanes_of(10**9, 0.0, [(2, 2 * 10**6, 2e6)]) == []
