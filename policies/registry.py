"""Finding policies by name: built in, by entry point, or by path (`./mine.py:Mine`)."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
import threading
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FunctionType
from typing import TypeVar

from policies.admission.base import Admission
from policies.eviction.base import EvictionPolicy
from policies.fields import Policy
from policies.precision.base import TierRule
from policies.prefetch.base import Prefetcher
from policies.routing.base import RoutingPolicy
from tracekit.errors import PolicyError, did_you_mean
from tracekit.opening import read_file

MOST_BYTES = 16 << 20
"""Of a policy file."""
LOADING = threading.Lock()
"""Held while a policy file is read: threads may ask for the same one at once."""
_EMPTY = inspect.Parameter.empty
P = TypeVar("P", bound=Policy)

EVICTION = {
    "lru": "policies.eviction.lru:Lru",
    "lfu": "policies.eviction.lfu:Lfu",
    "lfu-perfect": "policies.eviction.lfu_perfect:LfuPerfect",
    "lfu-aging": "policies.eviction.lfu_aging:LfuAging",
    "fifo": "policies.eviction.fifo:Fifo",
    "clock": "policies.eviction.clock:Clock",
    "sieve": "policies.eviction.sieve:Sieve",
    "s3fifo": "policies.eviction.s3fifo:S3Fifo",
    "arc": "policies.eviction.arc:Arc",
    "lru-k": "policies.eviction.lru_k:LruK",
    "random": "policies.eviction.random:Random",
    "static": "policies.eviction.static:Static",
    "score": "policies.eviction.score:Score",
    "least-stale": "policies.eviction.least_stale:LeastStale",
    "layer-aware": "policies.eviction.layer_aware:LayerAware",
    "learned": "policies.eviction.learned:Learned",
    "belady": "policies.eviction.belady:Belady",
    "belady-bypass": "policies.eviction.belady_bypass:BeladyBypass",
}
PREFETCH = {
    "none": "policies.prefetch.none:NoPrefetch",
    "gate": "policies.prefetch.gate:GatePrefetch",
    "previous-token": "policies.prefetch.previous_token:PreviousToken",
    "popular": "policies.prefetch.popular:Popular",
    "markov": "policies.prefetch.markov:Markov",
    "history": "policies.prefetch.history:History",
    "learned": "policies.prefetch.learned:LearnedPrefetch",
    "gate-adaptive": "policies.prefetch.adaptive:AdaptiveGate",
    "learned-adaptive": "policies.prefetch.adaptive:AdaptiveLearned",
    "oracle": "policies.prefetch.oracle:OraclePrefetch",
}
ROUTING = {
    "none": "policies.routing.none:NoRouting",
    "cache-prior": "policies.routing.cache_prior:CachePrior",
    "drop-cold": "policies.routing.drop_cold:DropCold",
    "substitute": "policies.routing.substitute:Substitute",
    "adaptive-k": "policies.routing.adaptive_k:AdaptiveK",
    "prune": "policies.routing.prune:Prune",
}
ADMISSION = {
    "always": "policies.admission.always:AlwaysAdmit",
    "second-miss": "policies.admission.second_miss:SecondMiss",
    "score": "policies.admission.score:ScoreAdmission",
}
PRECISION = {
    "miss-below": "policies.precision.miss_below:MissBelow",
    "rank": "policies.precision.rank:Rank",
    "popular": "policies.precision.popular:PopularHigh",
}
BUILTIN = {
    **{"eviction": EVICTION, "prefetch": PREFETCH, "admission": ADMISSION},
    **{"routing": ROUTING, "precision": PRECISION},
}
"""By kind."""


def eviction_policy(name: str) -> type[EvictionPolicy]:
    """The eviction policy class behind a name or `path.py:Class`. Raises PolicyError."""
    return find("eviction", name, EVICTION, EvictionPolicy)


def prefetcher(name: str) -> type[Prefetcher]:
    """The prefetcher class behind a name or `path.py:Class`. Raises PolicyError."""
    return find("prefetch", name, PREFETCH, Prefetcher)


def routing_policy(name: str) -> type[RoutingPolicy]:
    """The routing policy class behind a name or `path.py:Class`. Raises PolicyError."""
    return find("routing", name, ROUTING, RoutingPolicy)


def admission_policy(name: str) -> type[Admission]:
    """The admission policy class behind a name or `path.py:Class`. Raises PolicyError."""
    return find("admission", name, ADMISSION, Admission)


def tier_rule(name: str) -> type[TierRule]:
    """The class of the rule of precision tiers behind a name or `path.py:Class`. Raises PolicyError."""
    return find("precision", name, PRECISION, TierRule)


def names(kind: str) -> list[str]:
    """The names of all policies of a kind of `BUILTIN`, those of entry points included."""
    return sorted({*BUILTIN[kind], *(point.name for point in entry_points(group=f"tracekit.{kind}"))})


def find(kind: str, name: str, builtin: dict[str, str], base: type[P]) -> type[P]:
    """Resolve `name` to a class derived from `base` whose hooks can be called. Raises PolicyError."""
    return checked(kind, name, locate(kind, name, builtin), base)


def locate(kind: str, name: str, builtin: dict[str, str]) -> object:
    """What `name` stands for among the built-in policies, then paths, then entry points. Raises PolicyError."""
    if name in builtin:
        target = builtin[name]
    elif ".py:" in name:
        return load_path(name)
    else:
        points = {point.name: point.value for point in entry_points(group=f"tracekit.{kind}")}
        if name not in points:
            raise unknown(f"{kind} policy ", name, names(kind))
        target = points[name]
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # an entry point's module may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise PolicyError(f"{kind} policy {name!r}: cannot load {target}: {reason}") from error


def unknown(kind: str, name: str, known: list[str]) -> PolicyError:
    """The error about a name that stands for nothing; where it is a file, with the class that has to be added."""
    if name.endswith(".py"):
        try:
            tree = ast.parse(read_file(Path(name), MOST_BYTES))
        except OSError as error:
            return PolicyError(f"policy file {name}: {error.strerror or error}")
        except (SyntaxError, ValueError) as error:
            return PolicyError(f"policy file {name}: {error}")
        classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
        choices = (
            " or ".join(f"{name}:{found}" for found in classes[:5]) or f"{name}:Class, and there is no class in it"
        )
        return PolicyError(f"{name} is a file: say which class of it is the policy, {choices}")
    return PolicyError(f"unknown {kind}{name!r}{did_you_mean(name, known)}")


def checked(kind: str, name: str, found: object, base: type[P]) -> type[P]:
    """`found`, if it is a class derived from `base`, reads what there is, and has the hooks that the kernel calls."""
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PolicyError(f"{kind} policy {name!r} is not a subclass of {base.__module__}.{base.__name__}")
    problem = reads_problem(found, base) or hook_problem(found, base)
    if problem:
        raise PolicyError(f"{kind} policy {name!r}: {problem}")
    return found


def reads_problem(policy: type[Policy], base: type[Policy]) -> str:
    """What is wrong with what `policy` wants to be told, or ""."""
    if policy.reads in base.READABLE:
        return ""
    return f"reads = {policy.reads!r} is no signal; choose one of {', '.join(map(repr, base.READABLE))}"


def hooks(base: type[Policy]) -> dict[str, FunctionType]:
    """The hooks that the kernel calls, by name, as the base class defines them."""
    functions = {name: value for name, value in vars(base).items() if isinstance(value, FunctionType)}
    return {name: function for name, function in functions.items() if not name.startswith("_")}


def hook_problem(policy: type[Policy], base: type[Policy]) -> str:
    """What keeps compiled code from calling a hook of `policy`, or "". It is compared by names, not by position."""
    return _hook_problem(policy, base)  # type: ignore[arg-type]  # classes are hashable


@cache
def _hook_problem(policy: type[Policy], base: type[Policy]) -> str:
    for name, original in hooks(base).items():
        right = f"def {name}({', '.join(inspect.signature(original).parameters)})"
        own = inspect.getattr_static(policy, name)
        if not isinstance(own, FunctionType):
            return f"{name} is no plain method: write {right}"
        given = inspect.signature(own, follow_wrapped=False)
        if _shape(given) != _shape(inspect.signature(original)):
            wrong = ", ".join(str(parameter.replace(annotation=_EMPTY)) for parameter in given.parameters.values())
            return f"hook {name}({wrong}) has the wrong signature: write {right}"
    return ""


def _shape(signature: inspect.Signature) -> list[tuple[str, object, bool]]:
    return [(p.name, p.kind, p.default is _EMPTY) for p in signature.parameters.values()]


def load_path(name: str) -> object:
    """The class of `path.py:Class`. The module's name carries a digest of its text, so an edit is a new module."""
    path_text, _, attribute = name.rpartition(":")
    path = Path(path_text)
    try:
        source = read_file(path, MOST_BYTES)
    except OSError as error:
        raise PolicyError(f"policy file {path}: {error.strerror or error}") from error
    module_name = f"tracekit_policy_{path.stem}_{hashlib.sha256(source).hexdigest()[:16]}"
    with LOADING:
        _load(module_name, path, source)
    try:
        return getattr(sys.modules[module_name], attribute)
    except AttributeError:
        classes = [key for key, value in vars(sys.modules[module_name]).items() if isinstance(value, type)]
        raise PolicyError(f"policy file {path} has no class {attribute!r}{did_you_mean(attribute, classes)}") from None


def _load(module_name: str, path: Path, source: bytes) -> None:
    """Make the module of a policy file, once."""
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            # Not through the loader: its bytecode cache is keyed by time stamp, which a quick edit can leave unchanged.
            exec(compile(source, str(path), "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[module_name]
            raise PolicyError(f"policy file {path}: {type(error).__name__}: {error}") from error
