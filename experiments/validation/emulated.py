"""A profile's machine over an emulated link: the engine's copies are slowed down, so the simulator's are, too."""

from typing import TYPE_CHECKING

import msgspec

from engine.hardware import HardwareProfile

if TYPE_CHECKING:
    from engine.runtime.links.thread_link import EmulatedLink


def over_link(hardware: HardwareProfile, link: "EmulatedLink | None") -> HardwareProfile:
    """The profile with no copy faster than the link is; without a link, or with a faster one, as it is."""
    if link is None:
        return hardware
    most, own = round(link.bytes_per_s), hardware.link
    pageable = own.pageable_bytes_per_s
    slowed = msgspec.structs.replace(
        own,
        host_to_device_bytes_per_s=min(own.host_to_device_bytes_per_s, most),
        pageable_bytes_per_s=None if pageable is None else min(pageable, most),
        rates=[msgspec.structs.replace(rate, bytes_per_s=min(rate.bytes_per_s, most)) for rate in own.rates],
        latency_ns=max(own.latency_ns, link.latency_ns),
    )
    return msgspec.structs.replace(hardware, link=slowed)
