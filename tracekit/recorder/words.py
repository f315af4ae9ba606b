"""How a model is to be loaded, in a user's words: checked without torch, which takes seconds to import."""

import re

from tracekit.errors import ModelError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16")
_DEVICE = re.compile(r"auto|cpu(:\d+)?|cuda(:\d+)?")


def check_dtype(dtype: str) -> None:
    """Raise ModelError unless it is the name of a type that weights may have."""
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")


def check_device(device: str) -> None:
    """Raise ModelError unless it could be a device here; whether it is there only torch knows."""
    if _DEVICE.fullmatch(device) is None:
        raise ModelError(f"unknown device {device!r}; known: auto, cpu, cuda, cuda:0, ...")
