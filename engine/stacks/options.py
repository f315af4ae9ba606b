"""How the kernels of this package are compiled."""

from typing import Any

OPTIONS: dict[str, Any] = {"_nrt": False, "error_model": "numpy"}
"""They allocate nothing, so they need no reference counting, which would cost most of the speed."""
