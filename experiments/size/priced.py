"""Machines as a list prices them."""

from typing import NamedTuple

import msgspec

from engine.hardware import HardwareProfile
from engine.hardware.prices import Listed, PriceList, price_of


class Priced(NamedTuple):
    """A machine whose profile carries what is known of its price and power, and nothing else."""

    machine: HardwareProfile
    purchase: float | None
    """None: not known; 0 of a hired machine."""
    hired: bool
    unknown: list[str]


def priced(machine: HardwareProfile, prices: PriceList, *, own: bool, life_hours: int | None = None) -> Priced:
    """The machine as the list prices it.

    Args:
        own: whether the profile's own tables `power` and `price` count where the list has none: those of a user's file
            do, those of a shipped one are the shipped list's.
        life_hours: of a bought machine, in place of the list's.
    """
    listed, unknown = prices.machines.get(machine.name, Listed()), []
    power, price = (machine.power, machine.price) if own else (None, None)
    if listed.power is not None:
        power = listed.power.drawn
        if listed.power.assumed:
            unknown.append(f"{', '.join(listed.power.assumed)} are assumptions")
    if power is None:
        unknown.append("power is not known")
    purchase = None if price is None else price.purchase or 0
    if listed.price is not None:
        purchase = listed.price.purchase
        price = price_of(listed.price, prices)
        if listed.price.per_hour is None and listed.price.rest is None:
            unknown.append("the price is that of the device alone")
    if price is None:
        unknown.append("price is not known")
    elif price.currency != prices.currency:
        unknown.append(f"its price is in {price.currency}, others are in {prices.currency}: not compared")
        price, purchase = None, None
    if price is not None and price.purchase is not None and life_hours is not None:
        price = msgspec.structs.replace(price, lifetime_hours=life_hours)
    hired = price is not None and price.per_hour is not None
    return Priced(msgspec.structs.replace(machine, power=power, price=price), purchase, hired, unknown)
