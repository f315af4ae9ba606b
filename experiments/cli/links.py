"""The `--emulate-link` option: a slow link on a machine that has none."""

from typing import TYPE_CHECKING

from tracekit.errors import HardwareError

if TYPE_CHECKING:
    from engine.runtime.links.thread_link import EmulatedLink


def emulated_link(gigabytes_per_s: float | None) -> "EmulatedLink | None":
    """The link of `--emulate-link GB/s`, or None. Raises HardwareError for an impossible speed."""
    if gigabytes_per_s is None:
        return None
    from engine.runtime.links.thread_link import EmulatedLink

    if not gigabytes_per_s > 0:
        raise HardwareError(f"--emulate-link {gigabytes_per_s:g} is no speed: give GB/s above 0")
    return EmulatedLink(gigabytes_per_s * 1e9)
