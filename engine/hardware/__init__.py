"""Hardware profiles: the few numbers of a machine that decide the time of an offloaded step."""

from engine.hardware.profile import Device, HardwareProfile, Link, Overhead, hardware_names, load_hardware

__all__ = ["Device", "HardwareProfile", "Link", "Overhead", "hardware_names", "load_hardware"]
