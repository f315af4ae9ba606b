"""Expert offloading of mixture-of-experts models, recorded, replayed and run: `import tracekit as tk`.

    trace = tk.Trace.open("my.trace")
    result = tk.replay(trace, tk.Plan("4/layer", eviction="lru"), "rtx3060", model_shape="mixtral-8x7b")

A name is imported from where it lives when it is first used (PEP 562): `import tracekit` loads neither polars nor numba
nor torch. Type checkers read `__init__.pyi`, which a test holds to the table below.
"""

from importlib import import_module

_FACE = {
    "engine.curves.curve": ("CurvePoint", "curve"),
    "engine.hardware.profile": ("HardwareProfile", "load_hardware"),
    "engine.plan.plan": ("Plan", "load_plan"),
    "engine.replay.replay": ("replay",),
    "engine.replay.result": ("Result",),
    "engine.runtime.links.thread_link": ("EmulatedLink",),
    "engine.runtime.offload": ("offload",),
    "engine.runtime.offload_state": ("offloaded",),
    "engine.shapes.loading": ("load_shape",),
    "engine.shapes.shape": ("ModelShape",),
    "experiments.fit.modules": ("Predictor",),
    "experiments.study.finished_study": ("study",),
    "policies.admission.base": ("Admission",),
    "policies.eviction.base": ("EvictionPolicy",),
    "policies.eviction.ordered": ("Ordered",),
    "policies.fields": ("parameter", "per_expert", "per_group", "per_pair", "scalar"),
    "policies.precision.base": ("TierRule",),
    "policies.prefetch.base": ("Prefetcher",),
    "policies.routing.base": ("RoutingPolicy",),
    "tracekit.errors": (
        "CapacityError",
        "HardwareError",
        "ImportFormatError",
        "ModelError",
        "PlanError",
        "PolicyError",
        "ShapeError",
        "StudyError",
        "TraceError",
        "TracekitError",
    ),
    "tracekit.importers": ("import_trace",),
    "tracekit.manifest": ("Manifest", "ModelInfo", "Shard"),
    "tracekit.recorder.models": ("load_model",),
    "tracekit.recorder.options": ("RecordOptions",),
    "tracekit.recorder.prompts": ("Prompt", "read_prompts"),
    "tracekit.recorder.recorder": ("record",),
    "tracekit.rows": ("DECODE", "PREFILL", "UNUSED"),
    "tracekit.trace": ("Trace",),
    "tracekit.version": ("__version__",),
    "tracekit.writer": ("TraceWriter",),
}
_HOME = {name: module for module, names in _FACE.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _HOME[name].startswith("tracekit."):
        from tracekit.shadows import check_shadows

        check_shadows()
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return __all__
