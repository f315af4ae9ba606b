"""Hardware profiles: the few numbers of a machine that decide the time of an offloaded step."""

from engine.hardware.economy import Power, Price
from engine.hardware.profile import (
    Cpu,
    Device,
    Disk,
    Expansion,
    ExpertKernel,
    HardwareProfile,
    Link,
    Overhead,
    Rate,
    hardware_names,
    load_hardware,
)

__all__ = [
    "Cpu",
    "Device",
    "Disk",
    "Expansion",
    "ExpertKernel",
    "HardwareProfile",
    "Link",
    "Overhead",
    "Power",
    "Price",
    "Rate",
    "hardware_names",
    "load_hardware",
]
