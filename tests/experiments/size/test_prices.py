"""Prices: the shipped list says where it has them from, and a machine is priced as a list says, or not at all."""

from pathlib import Path

import msgspec
import pytest

from engine.hardware import hardware_names, load_hardware
from engine.hardware.economy import Price
from engine.hardware.prices import PriceList, load_prices
from experiments.size.priced import priced
from tracekit.errors import HardwareError

LIST = """
currency = "EUR"
life = { hours = 1000, source = "a test" }
electricity = { per_kwh = 0.5, date = 2020-01-02, source = "a test" }
[machines.t4.price]
device = 100
rest = 50
date = 2020-01-02
source = "a test"
[machines.a100.price]
per_hour = 3
date = 2020-01-02
source = "a test"
"""


@pytest.fixture
def own(tmp_path: Path) -> PriceList:
    (tmp_path / "prices.toml").write_text(LIST)
    return load_prices(tmp_path / "prices.toml")


def test_what_is_shipped_is_of_shipped_machines_and_has_sources() -> None:
    listed = load_prices()
    assert set(listed.machines) <= set(hardware_names())
    assert listed.life.source and listed.electricity.source
    for one in listed.machines.values():
        for part in (one.price, one.power):
            assert part is None or len(part.source) > 10
    assert listed.machines["rtx3080m"].price is None


@pytest.mark.parametrize("name", hardware_names())
def test_a_shipped_profile_costs_what_the_list_says(name: str) -> None:
    """So that replays, recommendations and sizing agree."""
    machine = load_hardware(name)
    found = priced(machine, load_prices(), own=False).machine
    assert (found.power, found.price) == (machine.power, machine.price)
    assert machine.power is not None and any(line.startswith("power: ") for line in machine.source)


def test_a_bought_machine_by_hand(own: PriceList) -> None:
    found = priced(load_hardware("t4"), own, own=False)
    assert (found.purchase, found.hired, found.machine.power) == (150, False, None)
    assert found.unknown == ["power is not known"]
    assert found.machine.price is not None and found.machine.price.of(10, 4) == pytest.approx(150 * 10 / 1000 + 4 * 0.5)
    longer = priced(load_hardware("t4"), own, own=False, life_hours=2000).machine.price
    assert longer is not None and longer.of(10, 4) == pytest.approx(150 * 10 / 2000 + 4 * 0.5)


def test_a_hired_machine_is_not_bought(own: PriceList) -> None:
    found = priced(load_hardware("a100"), own, own=False, life_hours=5)
    assert (found.purchase, found.hired) == (0, True)
    assert found.machine.price is not None and found.machine.price.of(2, 100) == 6


def test_what_nobody_says_is_not_known(own: PriceList) -> None:
    found = priced(load_hardware("rtx3060"), own, own=False)
    assert (found.machine.power, found.machine.price, found.purchase, found.hired) == (None, None, None, False)
    assert found.unknown == ["power is not known", "price is not known"]
    shipped = priced(load_hardware("rtx3060"), load_prices(), own=False)
    assert shipped.purchase == 329 and "the price is that of the device alone" in shipped.unknown


def test_a_users_own_profile_says_what_it_costs(own: PriceList) -> None:
    machine = msgspec.structs.replace(load_hardware("rtx3060"), name="mine")
    found = priced(machine, own, own=True)
    assert found.purchase is None and found.machine.power == machine.power
    assert found.unknown == ["its price is in USD, others are in EUR: not compared"]
    euros = msgspec.structs.replace(machine, price=Price(currency="EUR", purchase=7, lifetime_hours=7))
    assert priced(euros, own, own=True).purchase == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("device = 100", "device = 100\nper_hour = 2", "either device"),
        ("device = 100\n", "", "either device"),
        ("per_hour = 3", "per_hour = 3\nrest = 2", "rest goes with device"),
        ("per_hour", "per_huor", "unknown field `per_huor`"),
        ("2020-01-02", '"soon"', "date"),
        ('currency = "EUR"', "", "currency"),
        ("hours = 1000", "hours = 0", "hours"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(LIST.replace(old, new))
    with pytest.raises(HardwareError, match=message) as error:
        load_prices(tmp_path / "wrong.toml")
    assert "wrong.toml" in str(error.value) and "\n" not in str(error.value)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="no such file"):
        load_prices(tmp_path / "none.toml")
