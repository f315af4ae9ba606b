"""The manifest: what a trace says about itself, in one small JSON file, checked before any array is read."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import msgspec

from tracekit.errors import TraceError
from tracekit.opening import read_file
from tracekit.rows import UNUSED

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

# Far above any real model and far below what could exhaust a machine before the shards are even looked at.
MAX_MANIFEST_BYTES = 64 << 20
MAX_LAYERS = 4096
MAX_EXPERTS = UNUSED  # ids are below it
MAX_TOP_K = 1024
MAX_COUNT = 2**31 - 1  # tokens, requests, steps: i32 columns
MAX_BYTES = 2**50
MAX_LABEL = 64

SHAPE = ("moe_layers", "model_layers", "experts_per_layer", "top_k", "expert_params", "expert_bytes", "score_function")
"""The fields that recordings of one model share."""
_MEANING = ("schema_version", "model", *SHAPE, "tokens", "requests", "steps")

_SHARD_NAME = re.compile(r"(routing|logits|lookahead-[1-9][0-9]{0,3})-([0-9]{5,9})\.(parquet|safetensors)")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose gates these were."""

    id: str
    revision: str | None = None
    config_sha256: str | None = None
    family: str = "unknown"
    dtype: str | None = None


class Shard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One finished file of the trace. `kind` is "routing", "logits" or "lookahead-D"."""

    name: str
    kind: str
    rows: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a trace says about itself. Lists run over the MoE layers, in order.

    `expert_params` counts parameters per expert, `expert_bytes` the bytes of one expert as stored where the
    trace was taken, `dense_bytes` those of everything else in the layer; each is empty when unknown. The counts,
    `shards` and `complete` are kept by `TraceWriter`. `domains` are the labels of requests by their number, as far as
    any has one, "" for those that have none.
    """

    schema_version: int = SCHEMA_VERSION
    source: str
    model: ModelInfo
    moe_layers: list[int]
    model_layers: int
    experts_per_layer: list[int]
    top_k: int
    expert_params: list[int] = []
    expert_bytes: list[int] = []
    dense_bytes: list[int] = []
    score_function: str = "unknown"
    versions: dict[str, str] = {}
    prompts_sha256: str | None = None
    sampling: dict[str, int | float | str | bool | None] = {}
    seed: int | None = None
    tokens: int = 0
    requests: int = 0
    steps: int = 0
    shards: list[Shard] = []
    complete: bool = False
    notes: list[str] = []
    domains: list[str] = []

    def shards_of(self, kind: str) -> list[Shard]:
        """The shards of one kind, in row order."""
        return [shard for shard in self.shards if shard.kind == kind]

    def dense_kinds(self) -> list[str]:
        """The kinds of shards besides "routing", sorted."""
        return sorted({shard.kind for shard in self.shards} - {"routing"})

    def extent(self, kind: str) -> tuple[int, int]:
        """[layers, experts] of each row of logits or lookahead."""
        return len(self.moe_layers) - (lookahead_distance(kind) or 0), max(self.experts_per_layer)

    def without_rows(self, notes: list[str]) -> "Manifest":
        """What is said of the model, for a trace of other rows that is about to be written."""
        return msgspec.structs.replace(self, tokens=0, requests=0, steps=0, shards=[], complete=False, notes=notes)

    def digest(self) -> str:
        """sha256 over what the trace holds and means: shard digests and the fields that shape a replay.

        When and with what it was written (source, versions, notes) does not enter.
        """
        meaning = {name: getattr(self, name) for name in _MEANING}
        if self.dense_bytes:
            meaning["dense_bytes"] = self.dense_bytes
        if self.domains:
            meaning["domains"] = self.domains
        meaning["shards"] = sorted(shard.sha256 for shard in self.shards)
        return hashlib.sha256(msgspec.json.encode(meaning, order="deterministic")).hexdigest()

    def encode(self) -> bytes:
        """The bytes of manifest.json: the same for the same content."""
        said = msgspec.to_builtins(self)
        if not self.domains:  # earlier releases know no such field
            del said["domains"]
        return msgspec.json.format(msgspec.json.encode(said, order="deterministic"), indent=1) + b"\n"

    def check(self) -> None:
        """Raise TraceError unless every number is possible and all of them agree with each other."""
        layers = len(self.moe_layers)
        _within("number of MoE layers", layers, 1, MAX_LAYERS)
        _within("model_layers", self.model_layers, 1, MAX_LAYERS)
        _within("top_k", self.top_k, 1, MAX_TOP_K)
        if len(self.experts_per_layer) != layers:
            raise TraceError(f"experts_per_layer has {len(self.experts_per_layer)} entries, not {layers}")
        for number in self.experts_per_layer:
            _within("experts_per_layer", number, 1, MAX_EXPERTS)
        if self.top_k > max(self.experts_per_layer):
            raise TraceError(f"top_k is {self.top_k}, but no layer has that many experts")
        for layer in self.moe_layers:
            _within("moe_layers", layer, 0, self.model_layers - 1)
        if any(a >= b for a, b in pairwise(self.moe_layers)):
            raise TraceError("moe_layers must increase")
        for name in ("expert_params", "expert_bytes", "dense_bytes"):
            sizes: list[int] = getattr(self, name)
            if len(sizes) not in (0, layers):
                raise TraceError(f"{name} has {len(sizes)} entries for {layers} MoE layers")
            for size in sizes:
                _within(name, size, 1, MAX_BYTES)
        for name in ("tokens", "requests", "steps"):
            _within(name, getattr(self, name), 0, MAX_COUNT)
        _within("number of domains", len(self.domains), 0, MAX_COUNT)
        for label in self.domains:
            check_label(label)
        self._check_shards()

    def _check_shards(self) -> None:
        for shard in self.shards:
            _check_shard(shard, len(self.moe_layers))
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise TraceError("the same shard is listed twice")
        routing = [shard.rows for shard in self.shards_of("routing")]
        if sum(routing) != self.tokens:
            raise TraceError(f"routing shards hold {sum(routing)} rows, tokens is {self.tokens}")
        for kind in sorted({shard.kind for shard in self.shards}):
            if [shard.rows for shard in self.shards_of(kind)] != routing:
                raise TraceError(f"{kind} shards do not cover the same rows as the routing shards")


class _Version(msgspec.Struct, frozen=True):
    schema_version: int


def load_manifest(directory: Path) -> Manifest:
    """Read and check `directory/manifest.json`; TraceError, naming the path, when it cannot be trusted."""
    if not directory.exists():
        raise TraceError(f"no trace at {directory}: the directory does not exist")
    if not directory.is_dir():
        raise TraceError(f"{directory} is not a trace: a trace is a directory holding {MANIFEST_NAME}")
    path = directory / MANIFEST_NAME
    try:
        data = read_file(path, MAX_MANIFEST_BYTES)
        version = msgspec.json.decode(data, type=_Version).schema_version
        if version != SCHEMA_VERSION:
            raise TraceError(
                f"{path} has schema_version {version}, this release reads {SCHEMA_VERSION}: "
                "record or import the trace again, or use a matching release"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{path} is not a valid trace manifest: {error}") from None
    except FileNotFoundError:
        raise TraceError(f"{directory} is not a trace: it has no {MANIFEST_NAME}") from None
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        manifest.check()
    except TraceError as error:
        raise TraceError(f"{path} is not a valid trace manifest: {error}") from None
    return manifest


def check_label(label: str) -> None:
    """TraceError for what is no label of a domain: it is printed, and stands in files."""
    if len(label) > MAX_LABEL or not label.isprintable():
        raise TraceError(f"a domain is called {label[:40]!r}: give at most {MAX_LABEL} printable characters")


def lookahead_distance(kind: str) -> int | None:
    """The D of "lookahead-D"; None for any other kind."""
    return int(kind.removeprefix("lookahead-")) if kind.startswith("lookahead-") else None


def is_shard_name(name: str) -> bool:
    """Whether a file of this name could be a shard that a writer left behind."""
    return _SHARD_NAME.fullmatch(name) is not None


def _check_shard(shard: Shard, layers: int) -> None:
    # A name is matched whole, so no path separator, drive or ".." can come through.
    match = _SHARD_NAME.fullmatch(shard.name)
    suffix = "parquet" if shard.kind == "routing" else "safetensors"
    if match is None or match[1] != shard.kind or match[3] != suffix:
        raise TraceError(f"{shard.name[:80]!r} is not the name of a shard of kind {shard.kind[:40]!r}")
    distance = lookahead_distance(shard.kind)
    if distance is not None and distance >= layers:
        raise TraceError(f"{shard.name}: a lookahead of {distance} in a model of {layers} MoE layers")
    _within(f"rows of {shard.name}", shard.rows, 1, MAX_COUNT)
    if _SHA256.fullmatch(shard.sha256) is None:
        raise TraceError(f"{shard.name}: sha256 must be 64 lower-case hexadecimal digits")


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise TraceError(f"{name} is {value}, expected {low} to {high}")
