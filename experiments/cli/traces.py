"""What commands that write a trace print about it."""

from typing import TYPE_CHECKING

from experiments.cli import console

if TYPE_CHECKING:
    from tracekit.trace import Trace


def emit(trace: "Trace", *, json: bool) -> None:
    """Say what was written: a line, the notes, and what to do next; or JSON."""
    manifest = trace.manifest
    if json:
        console.emit_json(
            {
                "trace": str(trace.path),
                "digest": trace.digest,
                "model": manifest.model.id,
                "tokens": trace.tokens,
                "requests": manifest.requests,
                "steps": manifest.steps,
                "layers": trace.layers,
                "top_k": trace.top_k,
                "notes": manifest.notes,
            }
        )
        return
    console.tell(
        f"{trace.path}: {trace.tokens} tokens in {manifest.steps} steps, {trace.layers} MoE layers, "
        f"top-{trace.top_k} of {trace.num_experts} experts"
    )
    for note in manifest.notes:
        console.tell(f"note: {note}")
    console.tell(f"next: tracekit info {trace.path}")
