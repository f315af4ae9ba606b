"""One array of a stored matrix."""

from math import prod

import msgspec

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1, "int32": 4}


class StoredTensor(msgspec.Struct, frozen=True):
    """One array of a stored matrix: its name in the format, torch's word for the type, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]
