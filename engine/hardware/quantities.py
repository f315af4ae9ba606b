"""Quantities in profiles: wide enough for a microcontroller and for a rack, narrow enough to catch a wrong unit."""

from typing import Annotated

import msgspec

MemoryBytes = Annotated[int, msgspec.Meta(ge=1 << 20, le=1 << 50)]
BytesPerSecond = Annotated[int, msgspec.Meta(ge=1_000, le=10**15)]
FlopsPerSecond = Annotated[int, msgspec.Meta(ge=1_000_000, le=10**18)]
Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=10_000_000_000)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
