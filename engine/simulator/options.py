"""How the simulator's kernel is compiled, and how far it counts."""

from typing import Any

MOST_NS = 1 << 61
"""No clock of the kernel reaches it: half of what it takes for "later than anything"."""

OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}
"""The kernel allocates nothing: no reference counting, which would cost more than the work."""
INLINED: dict[str, Any] = OPTIONS | {"forceinline": True}
