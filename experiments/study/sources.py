"""Which source files a study's results follow from: all that a replay loads, found from the imports themselves."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from policies.compiled import own_modules, source_modules
from policies.compiled_rewriting import rewriting_modules
from policies.registry import admission_policy, eviction_policy, prefetcher, routing_policy, tier_rule
from tracekit.errors import PlanError

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("tracekit", "policies", "engine", "experiments")
ENTRIES = ("experiments.study.cell_results", "engine.replay.replay")
"""The modules whose imports, and theirs, make a cell's row. Policies are loaded by name and looked at one by one."""


@cache
def sources_digest() -> str:
    """A digest of the source that replays, times and bounds: what an edited simulator finds is another result."""
    found = hashlib.sha256(policies_digest("belady-bypass", "none").encode())  # it decides the bounds
    for name, path in sorted(import_closure(*ENTRIES).items()):
        found.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@cache
def policies_digest(
    eviction: str, predictor: str, admission: str = "always", routing: str = "none", rule: str | None = None
) -> str:
    """A digest of every source file that decides under these policies: an edited policy is another one."""
    found = hashlib.sha256()
    altering = rewriting_modules(routing_policy(routing)) if routing != "none" else []
    tiers = [] if rule is None else own_modules((tier_rule(rule),))
    deciding = source_modules((eviction_policy(eviction), prefetcher(predictor), admission_policy(admission)))
    for module in [*deciding, *altering, *tiers]:
        if module.__file__ is None:
            raise PlanError(f"policy module {module.__name__} has no source file")
        found.update(module.__name__.encode() + b"\0" + Path(module.__file__).read_bytes() + b"\0")
    return found.hexdigest()


def import_closure(*entries: str) -> dict[str, Path]:
    """Every module of ours that importing `entries` and calling what they hold may load, by name, with its file.

    Imports inside functions count; those for type checkers alone do not. A module's packages are loaded with it.
    """
    found: dict[str, Path] = {}
    left = list(entries)
    while left:
        name = left.pop()
        path = _file(name)
        if path is None or name in found:
            continue
        found[name] = path
        left.append(name.rpartition(".")[0])
        left.extend(_imports(ast.parse(path.read_bytes())))
    return found


def _file(name: str) -> Path | None:
    """The file of a module of ours; None for what is another's, or no module."""
    if name.partition(".")[0] not in PACKAGES:
        return None
    place = HOME.joinpath(*name.split("."))
    return next((p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file()), None)


def _imports(node: ast.AST) -> Iterator[str]:
    """The modules that code under `node` names in import statements; of `from a import b` both `a` and `a.b`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (name for alias in child.names for name in (child.module or "", f"{child.module}.{alias.name}"))
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from _imports(child)
