"""What machines cost and draw: one file, dated, with sources, that a user may replace as a whole."""

import datetime
import os
from typing import Annotated, Any

import msgspec

from engine.hardware.economy import Amount, Power, Price
from tracekit import named_toml
from tracekit.errors import HardwareError

Hours = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class ListedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one machine costs: bought (`device`, and `rest` where known), or hired (`per_hour`)."""

    device: Amount | None = None
    """The accelerator alone."""
    rest: Amount | None = None
    """Host, memory, power supply, case."""
    per_hour: Amount | None = None
    """Hire of the machine, electricity included."""
    date: datetime.date
    source: str

    def __post_init__(self) -> None:
        if (self.device is None) == (self.per_hour is None):
            raise ValueError("price: give either device (and rest), or per_hour")
        if self.device is None and self.rest is not None:
            raise ValueError("price: rest goes with device")

    @property
    def purchase(self) -> float:
        """What is paid before the first token; 0 of a hired machine."""
        return (self.device or 0) + (self.rest or 0)


class ListedPower(Power, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one machine draws."""

    date: datetime.date
    source: str
    assumed: tuple[str, ...] = ()
    """Fields that no source says."""

    @property
    def drawn(self) -> Power:
        """The watts alone."""
        return Power(**{name: getattr(self, name) for name in Power.__struct_fields__})


class Listed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is known of one machine."""

    price: ListedPrice | None = None
    power: ListedPower | None = None


class Life(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hours of use over which a purchase is written off."""

    hours: Hours
    source: str


class Electricity(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What bought machines pay for it."""

    per_kwh: Amount
    date: datetime.date
    source: str


class PriceList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file of prices and powers. Read one with `load_prices`."""

    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
    life: Life
    electricity: Electricity
    machines: dict[str, Listed] = {}


def load_prices(path: str | os.PathLike[str] | None = None) -> PriceList:
    """The shipped price list, or a user's. Raises HardwareError."""
    if path is None:
        return named_toml.load(
            "prices", PriceList, what="price list", package="engine.hardware", folder=".", error=HardwareError
        )
    table = named_toml.read_toml(path, "price list", HardwareError)
    return named_toml.convert(table, PriceList, label=f"price list {os.fspath(path)}", error=HardwareError)


def shipped_tables(name: str) -> dict[str, Any]:
    """The tables `power` and `price` of a shipped machine, and as `source` where they come from."""
    prices = load_prices()
    listed = prices.machines.get(name, Listed())
    found: dict[str, Any] = {"source": []}
    if listed.power is not None:
        assumed = f"; assumed: {', '.join(listed.power.assumed)}" if listed.power.assumed else ""
        found["source"].append(f"power: {listed.power.source} ({listed.power.date}){assumed}")
        found["power"] = msgspec.to_builtins(listed.power.drawn)
    if listed.price is None:
        found["source"].append("no price: the list of prices has none for this machine; add a table price of your own")
        return found
    rest = "" if listed.price.per_hour is not None or listed.price.rest is not None else ", without a machine around it"
    found["source"].append(f"price: {listed.price.source} ({listed.price.date}){rest}")
    if listed.price.per_hour is None:
        found["source"].append(f"price.lifetime_hours: {prices.life.source}")
        found["source"].append(f"price.electricity_per_kwh: {prices.electricity.source}")
    found["price"] = msgspec.to_builtins(price_of(listed.price, prices))
    return found


def price_of(listed: ListedPrice, prices: PriceList) -> Price:
    """What the list says of a machine as a profile's table: hired, or written off over the list's life."""
    if listed.per_hour is not None:
        return Price(currency=prices.currency, per_hour=listed.per_hour)
    return Price(
        currency=prices.currency,
        purchase=listed.purchase,
        lifetime_hours=prices.life.hours,
        electricity_per_kwh=prices.electricity.per_kwh,
    )
