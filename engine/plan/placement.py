"""Placements: which experts are pinned, as a plan says it and as a small file keeps it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from engine.plan.capacity import Capacity
from engine.plan.layers import parse_layers
from tracekit.durable import write_synced
from tracekit.errors import PlanError
from tracekit.named_toml import convert, decode
from tracekit.opening import read_file

SCHEMA = 1
MOST_BYTES = 16 << 20
SUFFIX = ".placement.toml"
Ways = Literal["popularity", "marginal", "even"]


class Pinned(NamedTuple):
    """What `placement.pinned` names: one of the three, and None for the others."""

    layers: tuple[int, ...] | None = None
    """Every expert of these MoE layers."""
    popular: Capacity | None = None
    """So many of the experts that the plan's `placement.profile` demanded most."""
    file: str | None = None
    """Those of a placement's file."""


def parse_pinned(text: str) -> Pinned:
    """`layers 0-5`, `popular:16/layer`, or the path of a placement. Raises PlanError."""
    if text.startswith("layers "):
        return Pinned(layers=parse_layers(text.removeprefix("layers "), "placement.pinned"))
    if text.startswith("popular:"):
        slots = Capacity.parse(text.removeprefix("popular:").strip())
        if slots.unit not in ("slots", "share"):
            raise PlanError(f"placement.pinned = {text[:64]!r}: give slots or a share, as in popular:16/layer")
        return Pinned(popular=slots)
    if text.endswith(".toml"):
        return Pinned(file=text)
    raise PlanError(
        f'placement.pinned = {text[:64]!r} is not understood; write "layers 0-5", "popular:16/layer" or the path of a '
        f"placement, NAME{SUFFIX}"
    )


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`source`: the routing that a placement was made from. `requests` are digests (`tracekit.requests`), sorted."""

    trace: str
    trace_digest: str
    model: str
    config_sha256: str | None = None
    requests: list[str]


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`domains.NAME`: the same of the requests of one domain."""

    # how many requests were of it
    requests: int
    pinned: dict[str, list[int]]
    # by layer, how often tokens of these requests chose each expert: what tells a request's domain by its routing
    counts: dict[str, list[int]]


class Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A placement's file: experts by MoE layer, and where they came from."""

    schema: int = SCHEMA
    # `cache`: what a cache held when it was saved
    by: Ways | Literal["cache"]
    # the capacity that was filled, and beside what moving part
    slots: str
    beside: str | None = None
    experts_per_layer: list[int]
    # experts of each MoE layer, by its number; layers of which none is pinned are left out
    pinned: dict[str, list[int]]
    # of what a cache held (`by = "cache"`): when each of `pinned` was used last, so that the least goes first
    used: dict[str, list[int]] = {}
    # how requests came to be of domains
    told_by: Literal["labels", "clusters"] | None = None
    domains: dict[str, Domain] = {}
    source: Source | None = None

    def keys(self, experts_per_layer: Sequence[int], label: str) -> tuple[int, ...]:
        """The pinned keys, layer * experts + expert, ascending. PlanError where they are not of such a model."""
        self.check_model(experts_per_layer, label)
        return keys_of(self.pinned, experts_per_layer, label)

    def in_order(self, experts_per_layer: Sequence[int], label: str) -> tuple[int, ...]:
        """The same keys, those used last at the end: as `used` says, else in order of layers. Raises PlanError."""
        found = self.keys(experts_per_layer, label)
        if not self.used:
            return found
        if {name: len(when) for name, when in self.used.items()} != {n: len(own) for n, own in self.pinned.items()}:
            raise PlanError(f"{label}: used says of each expert of pinned when it was used: as many numbers, by layer")
        most = max(experts_per_layer)
        when = {
            int(name) * most + expert: last
            for name, experts in self.pinned.items()
            for expert, last in zip(experts, self.used[name], strict=True)
        }
        return tuple(sorted(found, key=lambda key: (when[key], key)))

    def check_model(self, experts_per_layer: Sequence[int], label: str) -> None:
        """PlanError where it is of another model."""
        if self.experts_per_layer != list(experts_per_layer):
            raise PlanError(f"{label} is for a model with other MoE layers or experts: make one with tracekit place")


def keys_of(table: Mapping[str, list[int]], experts_per_layer: Sequence[int], label: str) -> tuple[int, ...]:
    """The keys in a table of experts by layer, ascending. Raises PlanError."""
    found = []
    for name, experts in table.items():
        layer = layer_of(name, len(experts_per_layer))
        if layer < 0:
            raise PlanError(f"{label}: pinned.{name} is no MoE layer of {len(experts_per_layer)}")
        for expert in experts:
            if not 0 <= expert < experts_per_layer[layer]:
                raise PlanError(f"{label}: layer {layer} has no expert {expert}, only {experts_per_layer[layer]}")
            found.append(layer * max(experts_per_layer) + expert)
    if len(set(found)) < len(found):
        raise PlanError(f"{label} pins an expert twice")
    return tuple(sorted(found))


def layer_of(name: str, layers: int) -> int:
    """The layer that a table's key names; -1 for none of so many."""
    layer = int(name) if name.isdecimal() and len(name) < 7 else -1
    return layer if layer < layers else -1


def by_layer(keys: Sequence[int], experts: int) -> dict[str, list[int]]:
    """Keys as a placement's file holds them."""
    found: dict[str, list[int]] = {}
    for key in sorted(keys):
        found.setdefault(str(key // experts), []).append(key % experts)
    return found


def load_placement(path: str | os.PathLike[str]) -> Placement:
    """Read a placement. Raises PlanError, one line."""
    label = f"placement {os.fspath(path)}"
    try:
        data = read_file(Path(path), MOST_BYTES)
    except OSError as error:
        raise PlanError(f"{label}: {error.strerror or error}; tracekit place makes one") from None
    tables = decode(data, label=label, error=PlanError)
    if tables.get("schema", SCHEMA) != SCHEMA:
        raise PlanError(f"{label} is of schema {tables['schema']}, this version reads {SCHEMA}: make it anew")
    return convert(tables, Placement, label=label, error=PlanError)


def save_placement(placement: Placement, path: Path) -> None:
    """Write a placement: the same bytes for the same one."""
    import tomli_w

    table = msgspec.to_builtins(placement)
    tables = {"pinned": placement.pinned, **({"used": placement.used} if placement.used else {})}
    source, domains = table.pop("source") or {}, table.pop("domains")
    lines = {key: value for key, value in table.items() if value is not None and key not in ("pinned", "used")}
    text = tomli_w.dumps(lines)
    for name, own in tables.items():
        text += f"\n[{name}]\n{_by_layer_lines(own)}"
    for name, domain in domains.items():
        key = tomli_w.dumps({name: 0}).rpartition(" = ")[0]  # quoted, where it has to be
        text += f"\n[domains.{key}]\nrequests = {domain['requests']}\n"
        for part in ("pinned", "counts"):
            text += f"\n[domains.{key}.{part}]\n{_by_layer_lines(domain[part])}"
    if source:
        text += "\n" + tomli_w.dumps({"source": {key: value for key, value in source.items() if value is not None}})
    write_synced(path, lambda file: file.write(text.encode()))


def _by_layer_lines(table: Mapping[str, list[int]]) -> str:
    # A line for each layer: a placement is there to be read, too.
    return "".join(f"{layer} = {numbers}\n" for layer, numbers in table.items())
