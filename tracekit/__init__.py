"""What happened: expert-routing traces of mixture-of-experts models, written, read, imported and described.

    from tracekit import Trace
    trace = Trace.open("prompts.trace")
    trace.experts        # u16 [tokens, layers, top_k]

Names are resolved on first use, so `import tracekit` loads neither polars nor anything heavier.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracekit.errors import (
        CapacityError,
        HardwareError,
        ImportFormatError,
        ModelError,
        PlanError,
        PolicyError,
        ShapeError,
        StudyError,
        TraceError,
        TracekitError,
    )
    from tracekit.importers import import_trace
    from tracekit.manifest import Manifest, ModelInfo, Shard
    from tracekit.rows import DECODE, PREFILL, UNUSED
    from tracekit.trace import Trace
    from tracekit.writer import TraceWriter

_HOME = {
    "CapacityError": "errors",
    "HardwareError": "errors",
    "ImportFormatError": "errors",
    "ModelError": "errors",
    "PlanError": "errors",
    "PolicyError": "errors",
    "ShapeError": "errors",
    "StudyError": "errors",
    "TraceError": "errors",
    "TracekitError": "errors",
    "Manifest": "manifest",
    "ModelInfo": "manifest",
    "Shard": "manifest",
    "DECODE": "rows",
    "PREFILL": "rows",
    "UNUSED": "rows",
    "Trace": "trace",
    "TraceWriter": "writer",
    "import_trace": "importers",
}

__all__ = [
    "DECODE",
    "PREFILL",
    "UNUSED",
    "CapacityError",
    "HardwareError",
    "ImportFormatError",
    "Manifest",
    "ModelError",
    "ModelInfo",
    "PlanError",
    "PolicyError",
    "ShapeError",
    "Shard",
    "StudyError",
    "Trace",
    "TraceError",
    "TraceWriter",
    "TracekitError",
    "import_trace",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
