"""Arguments and options that several commands take, each said once."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tracekit.errors import HardwareError, PlanError

if TYPE_CHECKING:
    from engine.hardware import HardwareProfile
    from engine.plan.plan import Plan
    from engine.runtime.links.thread_link import EmulatedLink as Link

Json = Annotated[bool, typer.Option("--json", help="print JSON for machines")]
TraceDirectory = Annotated[Path, typer.Argument(help="a trace directory")]
NewTrace = Annotated[Path, typer.Option("--output", "-o", help="the trace directory to write, NAME.trace")]
Model = Annotated[str, typer.Argument(help="directory of the model, or its hub name if it is cached here")]
PROMPTS = 'JSON lines: {"id", "prompt"} or {"id", "messages"}, perhaps with "domain"; - for what is piped in'
Temperature = Annotated[float | None, typer.Option(help="sample at this temperature; greedy without")]
TopP = Annotated[float | None, typer.Option(help="sample from the most likely tokens of this mass")]

PlanFile = Annotated[Path | None, typer.Option(help="a plan file (TOML)")]
Capacity = Annotated[
    str | None,
    typer.Option(
        help="4/layer, 512, 2000MiB or 25%, each also with /layer, '6/layer; layers 0-3: 12', or auto where the model "
        "runs; over the plan's"
    ),
]
Policy = Annotated[str | None, typer.Option(help="eviction policy, or ./file.py:Class; over the plan's")]
Prefetch = Annotated[str | None, typer.Option(help="prefetcher, or ./file.py:Class; over the plan's")]
PrefetchDistance = Annotated[int | None, typer.Option(help="MoE layers to look ahead; over the plan's")]
PrefetchCount = Annotated[int | None, typer.Option(help="suggested experts per visit; over the plan's")]
RoutingPolicy = Annotated[
    str | None,
    typer.Option(help="alters what gates choose by what is there: a policy, or ./file.py:Class; over the plan's"),
]
RoutingSet = Annotated[
    list[str] | None, typer.Option(metavar="NAME=VALUE", help="a parameter of the routing policy; repeat")
]
RoutingProfile = Annotated[
    Path | None, typer.Option(help="a trace, or counts, for a routing policy that ranks experts by it, as prune")
]
Miss = Annotated[str | None, typer.Option(help="where misses are computed: copy, host, split or auto; over the plan's")]
MissShare = Annotated[float | None, typer.Option(help="for --miss split: the share of misses that are copied")]
Admission = Annotated[
    str | None, typer.Option(help="which misses the cache keeps, or ./file.py:Class; over the plan's")
]
AdmitPerStep = Annotated[
    int | None, typer.Option(help="misses that the cache keeps at a step, at most; over the plan's")
]
Weights = Annotated[
    str | None,
    typer.Option(help="how experts are stored: bf16, hqq-4bit, hqq-2bit, ...; over the plan's"),
]

Engine = Annotated[
    str | None,
    typer.Option(help="engine profile, name or file, or calibrated: the one in the hardware profile, the default"),
]

Reshape = Annotated[
    str | None,
    typer.Option(help="sizes: that model routes otherwise, give its experts' size to the trace's"),
]

Context = Annotated[
    int | None, typer.Option(min=1, max=1 << 24, help="tokens of each sequence; 8192, or the trace's longest")
]
Sequences = Annotated[int | None, typer.Option(min=1, max=1 << 16, help="sequences at once; the trace's if not given")]

PriorTokens = Annotated[int | None, typer.Option("--tokens", min=1, help="of prior: generated tokens in all; 1024")]
PriorPrompt = Annotated[
    int | None, typer.Option("--prompt-tokens", min=0, help="of prior: tokens of each request's prompt; 128")
]
PriorRequests = Annotated[
    int | None, typer.Option("--requests", min=1, help="of prior: 4, or twice as many as come together")
]

HostMemory = Annotated[str | None, typer.Option(help="host memory for experts, e.g. 32GiB; the profile's if not given")]
DiskSpeed = Annotated[
    str | None, typer.Option(help="what the disk reads, e.g. 3GB/s, for experts that host memory cannot hold")
]

Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16, float16")]
Device = Annotated[str, typer.Option(help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")]
Host = Annotated[
    str | None, typer.Option(help="where experts lie: memory or disk; the plan's serve.host if not given, else memory")
]
Slabs = Annotated[Path | None, typer.Option(help="a directory of converted experts, written if it is not there yet")]
Memory = Annotated[
    str | None, typer.Option(help="device memory for weights and slots, e.g. 8GiB; default: what is free")
]
SaveWarm = Annotated[
    Path | None,
    typer.Option(help="also write what the cache holds at the end, NAME.placement.toml, for a plan's cache.warm"),
]
EmulateLink = Annotated[float | None, typer.Option(help="slow copies down to this many GB/s (CPU only)")]
PrefillChunk = Annotated[
    int | None,
    typer.Option(min=1, help="tokens of a prompt that are read at a time, each a step; generate: 2048, else all"),
]


def rate(text: str | None) -> int | None:
    """Bytes per second of `--disk-speed 3GB/s`."""
    from engine.plan.capacity import parse_memory

    return parse_memory(None if text is None else text.strip().removesuffix("/s"), "--disk-speed")


def emulated_link(gigabytes_per_s: float | None) -> "Link | None":
    """The link of `--emulate-link GB/s`, or None. Raises HardwareError for an impossible speed."""
    if gigabytes_per_s is None:
        return None
    from engine.runtime.links.thread_link import EmulatedLink

    if not gigabytes_per_s > 0:
        raise HardwareError(f"--emulate-link {gigabytes_per_s:g} is no speed: give GB/s above 0")
    return EmulatedLink(gigabytes_per_s * 1e9)


def check_run(plan: "Plan", hardware: "HardwareProfile | None", dtype: str, device: str) -> None:
    """Raise TracekitError for what the engine would refuse, before it is imported and a model loaded: that takes a
    while. A plan that weighs the host needs a profile that says how fast it computes."""
    from engine.decisions.misses import check_profile
    from engine.plan.weights import WeightFormat
    from tracekit.recorder.words import check_device, check_dtype

    check_dtype(dtype)
    check_device(device)
    WeightFormat.parse(plan.weights.experts or "bf16").served()
    check_profile(plan.miss, hardware)


def check_placement(option: str, path: Path | None) -> None:
    """Raise PlanError or TraceError where no placement can be written to `path`."""
    from engine.plan.placement import SUFFIX
    from tracekit.durable import check_new, check_place

    if path is None:
        return
    if path.suffix != ".toml":
        raise PlanError(f"{option} {path}: name it as a plan will, NAME{SUFFIX}")
    check_place(path)
    check_new(path)


def refuse_without_prior(model: str | None, *asked: int | None) -> None:
    """Raise PlanError if routing is described (`PriorTokens`, ...) that a recorded trace has already."""
    if model is None and any(value is not None for value in asked):
        raise PlanError(
            "--tokens, --prompt-tokens and --requests say what routing to draw: give prior:MODEL in place of a trace"
        )


def refuse_decided(option: str, asked: Mapping[str, object]) -> None:
    """Raise PlanError if anything is asked for that what `option` names has decided already; None is not asked for."""
    if given := [name for name, value in asked.items() if value is not None]:
        raise PlanError(f"{option} holds what was decided already: leave out {', '.join(given)}")
