"""Profiles: the few numbers of a machine, and of the engine on it, that decide the time of an offloaded step."""

from engine.hardware.economy import Power, Price
from engine.hardware.engine_profile import (
    EngineProfile,
    Expanded,
    Expansion,
    ExpertKernel,
    Overhead,
    engine_names,
    load_engine,
)
from engine.hardware.host import Host, Lanes
from engine.hardware.profile import Cpu, Device, Disk, HardwareProfile, Link, Rate, hardware_names, load_hardware

__all__ = [
    "Cpu",
    "Device",
    "Disk",
    "EngineProfile",
    "Expanded",
    "Expansion",
    "ExpertKernel",
    "HardwareProfile",
    "Host",
    "Lanes",
    "Link",
    "Overhead",
    "Power",
    "Price",
    "Rate",
    "engine_names",
    "hardware_names",
    "load_engine",
    "load_hardware",
]
