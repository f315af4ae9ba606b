"""Hardware profiles: shipped ones are sane, broken ones refused in one line, times round up exactly."""

from __future__ import annotations

from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.hardware import (
    Device,
    Disk,
    EngineProfile,
    HardwareProfile,
    Lanes,
    Link,
    Overhead,
    Rate,
    hardware_names,
    load_hardware,
)
from tracekit.errors import HardwareError

VALID = load_hardware("t4").to_toml()


def profile(bandwidth: int = 10**10, flops: int = 10**13, link: int = 10**9, latency: int = 0) -> HardwareProfile:
    return HardwareProfile(
        name="test",
        description="",
        calibrated=False,
        source=[],
        device=Device(memory_bytes=2**30, memory_bandwidth_bytes_per_s=bandwidth, compute_flops_per_s=flops),
        link=Link(host_to_device_bytes_per_s=link, latency_ns=latency, copy_engines=1),
        engine=EngineProfile(name="none", overhead=Overhead(per_layer_ns=0, per_step_ns=0, gate_readback_ns=0)),
    )


def test_the_design_promises_these_machines() -> None:
    assert set(hardware_names()) == {"t4", "rtx3060", "rtx3080m", "a100", "rtx4090", "h100", "h200"}


@pytest.mark.parametrize("name", hardware_names())
def test_a_shipped_profile_is_consistent(name: str) -> None:
    shipped = load_hardware(name)
    assert shipped.name == name
    assert not shipped.calibrated, "a data sheet is not a measurement"
    assert any("assumption" in line for line in shipped.source)
    # Device memory is several times faster than any link: the reason offloading is slow.
    assert shipped.device.memory_bandwidth_bytes_per_s > 8 * shipped.link.host_to_device_bytes_per_s
    assert 11 < shipped.device.memory_bytes / 2**30 < 142
    assert shipped.cpu is not None
    assert shipped.cpu.memory_bandwidth_bytes_per_s > shipped.link.host_to_device_bytes_per_s, "copies read it too"
    assert shipped.disk is None, "nobody's disk is typical"


def test_order_of_the_machines() -> None:
    bandwidth = {name: load_hardware(name).device.memory_bandwidth_bytes_per_s for name in hardware_names()}
    assert sorted(bandwidth, key=bandwidth.__getitem__) == [
        "t4", "rtx3060", "rtx3080m", "rtx4090", "a100", "h100", "h200",
    ]  # fmt: skip


def test_reading_by_path_equals_reading_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(VALID)
    assert load_hardware(path) == load_hardware(str(path)) == load_hardware("t4")


def test_a_whole_float_is_an_integer(tmp_path: Path) -> None:
    path = tmp_path / "float.toml"
    path.write_text(VALID.replace("320000000000", "320e9"))
    assert load_hardware(path) == load_hardware("t4")


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_to_toml_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, text: str, source: list[str]) -> None:
    from msgspec.structs import replace

    written = replace(load_hardware("h100"), description=text, source=source, calibrated=True)
    path = tmp_path_factory.mktemp("profile") / "p.toml"
    path.write_bytes(written.to_toml().encode())
    assert load_hardware(path) == written


@given(st.integers(0, 2**45), st.integers(1_000, 10**13), st.integers(0, 10**9))
def test_copy_time_is_the_exact_ceiling(size: int, rate: int, latency: int) -> None:
    expected = ceil(latency + Fraction(size) * 10**9 / rate)
    assert profile(link=rate, latency=latency).copy_ns(size) == expected


def test_every_optional_field_reads_back_equal(tmp_path: Path) -> None:
    from msgspec.structs import replace

    written = replace(
        load_hardware("h100"),
        disk=Disk(read_bytes_per_s=3 * 10**9, latency_ns=80_000, host_cache_bytes=2**34, link_slowdown_percent=20),
        cpu=None,
        link=Link(
            host_to_device_bytes_per_s=10**10,
            latency_ns=5,
            copy_engines=2,
            rates=[Rate(bytes=10**5, bytes_per_s=10**9), Rate(bytes=10**7, bytes_per_s=10**10)],
            host_memory="pageable",
            pageable_bytes_per_s=3 * 10**9,
            chunk_bytes=2**20,
        ),
    )
    path = tmp_path / "p.toml"
    path.write_text(written.to_toml())
    assert load_hardware(path) == written


def test_a_rate_depends_on_the_size() -> None:
    """1 GB/s at 100 kB (100 us), 10 GB/s at 10 MB (1000 us); half way in size half way in time."""
    from msgspec.structs import replace

    points = [Rate(bytes=10**5, bytes_per_s=10**9), Rate(bytes=10**7, bytes_per_s=10**10)]
    flat = profile(link=10**10, latency=7)
    machine = replace(flat, link=replace(flat.link, rates=points))
    assert [machine.wire_ns(size) for size in (0, 1000, 10**5)] == [0, 1000, 100_000]
    assert machine.wire_ns((10**5 + 10**7) // 2) == 550_000
    assert [machine.wire_ns(size) for size in (10**7, 10**8)] == [10**6, 10**7]
    assert machine.copy_ns(10**5) == 100_007
    pageable = replace(machine.link, host_memory="pageable", pageable_bytes_per_s=5 * 10**8)
    assert replace(machine, link=pageable).wire_ns(10**5) == 200_000


@given(
    st.dictionaries(st.integers(1, 2**40), st.integers(1_000, 10**13), max_size=4),
    st.integers(0, 2**41),
    st.integers(0, 2**41),
)
def test_a_larger_copy_never_takes_less_time(rates: dict[int, int], one: int, other: int) -> None:
    from msgspec.structs import replace

    points: list[Rate] = []
    for size in sorted(rates):
        # A rate that would make the larger copy the faster one is refused when a profile is read.
        if not points or points[-1].bytes * rates[size] <= size * points[-1].bytes_per_s:
            points.append(Rate(bytes=size, bytes_per_s=rates[size]))
    machine = profile()
    machine = replace(machine, link=replace(machine.link, rates=points))
    assert machine.wire_ns(min(one, other)) <= machine.wire_ns(max(one, other))


@given(st.integers(0, 10**18), st.integers(0, 2**45))
def test_compute_time_is_the_slower_of_the_two_rooflines(flops: int, size: int) -> None:
    machine = profile()
    assert machine.compute_ns(flops, size) == max(ceil(Fraction(flops, 10**4)), ceil(Fraction(size, 10)))


def test_negative_work_is_refused() -> None:
    with pytest.raises(HardwareError, match="negative"):
        profile().copy_ns(-1)
    for flops, size in ((-1, 0), (0, -1)):
        with pytest.raises(HardwareError, match="negative"):
            profile().compute_ns(flops, size)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("copy_engines = 1", "copy_engine = 1", r"did you mean 'copy_engines'"),
        ("copy_engines = 1", "copy_engines = 3", "<= 2"),
        ("copy_engines = 1", "", "missing required field `copy_engines`"),
        ("latency_ns = 10000", "latency_ns = -1", ">= 0"),
        ("latency_ns = 10000", "latency_ns = nan", "Expected `int`"),
        ("latency_ns = 10000", "latency_ns = inf", "Expected `int`"),
        ("latency_ns = 10000", "latency_ns = 0.5", "Expected `int`"),
        ("latency_ns = 10000", "latency_ns = '10'", "Expected `int`"),
        ("latency_ns = 10000", "latency_ns = true", "Expected `int`"),
        ("latency_ns = 10000", "latency_ns = 10_000_000_001", "<= 10000000000"),
        ('"pinned"', '"pageable"', "needs link.pageable_bytes_per_s"),
        ('"pinned"', '"mapped"', "Invalid enum value 'mapped'"),
        ("chunk_bytes = 0", "chunk_bytes = 1000", "give at least 262144, or 0"),
        ("copy_engines = 1", "copy_engines = 1\nrates = [{bytes = 5}]", "missing required field `bytes_per_s`"),
        (
            "copy_engines = 1",
            "copy_engines = 1\nrates = [{bytes = 5, bytes_per_s = 5e6}, {bytes = 5, bytes_per_s = 6e6}]",
            "sizes must ascend",
        ),
        (
            "copy_engines = 1",
            "copy_engines = 1\nrates = [{bytes = 5, bytes_per_s = 5e6}, {bytes = 6, bytes_per_s = 9e6}]",
            "a copy of 6 bytes would take less time than one of 5",
        ),
        ("[link]", "[disk]\nlatency_ns = 1\n[link]", "missing required field `read_bytes_per_s`"),
        ("[link]", "[disk]\nread_bytes_per_s = 1e9\nlatency_ns = 1\nhost_cache_bytes = 0\n[link]", ">= 1048576"),
        ("transfer_ns", "transfers_ns", "unknown field `transfers_ns`"),
        ("320000000000", "0", ">= 1000"),
        ("320000000000", "1" * 100, "<= 1000000000000000"),
        ("320000000000", "1" * 5000, "not valid TOML"),
        ("[link]", "[link", "not valid TOML"),
        ("[link]", "[links]", "unknown field `links`.*did you mean 'link'"),
        ("calibrated = false", "calibrated = 'no'", "Expected `bool`"),
        ("calibrated = false", "deep = " + "[" * 20_000 + "]" * 20_000, "nested too deeply"),
        ("calibrated = false", "a." * 999 + "b = 1", "nested too deeply|unknown field"),
        ("calibrated = false", "a." * 20_000 + "b = 1", "more than 1000 dots"),
    ],
)
def test_a_broken_profile_is_refused_in_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in VALID
    path = tmp_path / "broken.toml"
    path.write_text(VALID.replace(old, new))
    with pytest.raises(HardwareError, match=says) as caught:
        load_hardware(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("rtx306", "did you mean 'rtx3060'"),
        ("", "shipped: a100"),
        ("../profiles/t4", "no such file"),
        ("missing.toml", "no such file"),
        ("a\0b.toml", "cannot be read"),
        ("/dev/zero", "not a file"),
        ("/", "not a file"),
    ],
)
def test_a_wrong_name_is_refused_in_one_line(word: str, says: str) -> None:
    with pytest.raises(HardwareError, match=says) as caught:
        load_hardware(word)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_profile(tmp_path: Path) -> None:
    binary, large = tmp_path / "binary.toml", tmp_path / "large.toml"
    binary.write_bytes(b"\x80\x04\x95\xff")
    large.write_bytes(b"#" * (1 << 17))
    for path, says in ((binary, "UTF-8"), (large, "too large"), (tmp_path, "not a file")):
        with pytest.raises(HardwareError, match=says):
            load_hardware(path)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("noise") / "noise.toml"
    path.write_bytes(data)
    with pytest.raises(HardwareError) as caught:
        load_hardware(path)
    assert "\n" not in str(caught.value)


def test_a_disk_with_lanes_is_physical() -> None:
    def of(*lanes: tuple[int, int]) -> Disk:
        found = [Lanes(reads=reads, bytes_per_s=rate) for reads, rate in lanes]
        return Disk(read_bytes_per_s=10**9, latency_ns=0, host_cache_bytes=1 << 30, lanes=found)

    assert of().most_reads == 1 and of((8, 3 * 10**9)).most_reads == 8
    assert of((1, 10**9), (3, 2 * 10**9)).read_ns(10**6, 2) == -(-2 * 10**6 * 10**9 // (15 * 10**8))
    with pytest.raises(ValueError, match="must ascend"):
        of((4, 10**9), (2, 2 * 10**9))
    with pytest.raises(ValueError, match="would be faster than one of 2"):
        of((2, 10**9), (4, 3 * 10**9))
