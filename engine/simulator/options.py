"""How the simulator's kernel is compiled."""

from typing import Any

OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}
"""The kernel allocates nothing: no reference counting, which would cost more than the work."""
INLINED: dict[str, Any] = OPTIONS | {"forceinline": True}
