"""What a machine draws and costs: the optional tables `power` and `price` of a hardware profile."""

from typing import Annotated

import msgspec

Watts = Annotated[float, msgspec.Meta(ge=0, le=100_000)]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e9)]


class Power(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Electrical power by part, idle and at work. Between the two a part is taken to be one or the other."""

    device_idle_w: Watts
    """The accelerator while it waits."""
    device_busy_w: Watts
    """The accelerator while it computes."""
    host_idle_w: Watts
    """Processor, memory, board and fans while the host waits."""
    host_busy_w: Watts
    """The same while the host asks for work (overhead) or computes experts itself."""
    link_busy_w: Watts = 0
    """On top of these while experts are copied: host memory, link and device memory."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an hour of the machine costs: hired, or bought and written off."""

    currency: Annotated[str, msgspec.Meta(pattern="^[A-Z]{3}$")]
    """Three letters, as in ISO 4217."""
    per_hour: Amount | None = None
    """Hire of the machine, electricity included."""
    purchase: Amount | None = None
    """Price of the machine, if bought; then `lifetime_hours`, too."""
    lifetime_hours: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """Hours of use over which the purchase is written off."""
    electricity_per_kwh: Amount = 0
    """Price of a kilowatt-hour, for a bought machine; needs the table `power`."""

    def __post_init__(self) -> None:
        if (self.per_hour is None) == (self.purchase is None):
            raise ValueError("price: give either per_hour, or purchase with lifetime_hours")
        if (self.purchase is None) != (self.lifetime_hours is None):
            raise ValueError("price: purchase and lifetime_hours go together")
        if self.per_hour is not None and self.electricity_per_kwh:
            raise ValueError("price: per_hour includes electricity: remove electricity_per_kwh")

    def of(self, hours: float, kwh: float) -> float:
        """The cost of so many hours in which so much was drawn."""
        if self.per_hour is not None:
            return self.per_hour * hours
        assert self.purchase is not None and self.lifetime_hours is not None
        return self.purchase * hours / self.lifetime_hours + self.electricity_per_kwh * kwh
