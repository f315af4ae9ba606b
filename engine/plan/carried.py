"""Plans that travel: a user's policy lies beside the plan that names it, under a digest that is checked when it is
read.

`eviction.policy = "mine-1a2b3c4d.py:Mine"` with `eviction.digest` is relative to the plan's folder, wherever that has
been copied to; without a digest a policy's path is relative to where the command runs, as on the command line.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tracekit.errors import PlanError
from tracekit.opening import read_file

if TYPE_CHECKING:
    from engine.plan.plan import Plan

MOST_BYTES = 16 << 20
"""Of a policy's file."""


class Carried(NamedTuple):
    """A plan as it is to be written, and the files that lie beside it, by name."""

    plan: "Plan"
    files: dict[str, bytes]


def carried(plan: "Plan", below: str = "") -> Carried:
    """The plan with its policies' files named by digest, in the folder `below` the plan's. Raises PlanError."""
    files: dict[str, bytes] = {}

    def moved(name: str) -> tuple[str, str] | None:
        path, _, cls = name.rpartition(":")
        if not path.endswith(".py"):
            return None
        data = _read(Path(path), name)
        digest = hashlib.sha256(data).hexdigest()
        file = f"{Path(path).stem}-{digest[:8]}.py"
        files[file] = data
        return f"{below}{file}:{cls}", digest

    eviction, prefetch = plan.eviction, plan.prefetch
    if (own := moved(eviction.policy)) is not None:
        eviction = msgspec.structs.replace(eviction, policy=own[0], digest=own[1])
    if (own := moved(prefetch.predictor)) is not None:
        prefetch = msgspec.structs.replace(prefetch, predictor=own[0], digest=own[1])
    return Carried(plan.replace(eviction=eviction, prefetch=prefetch), files)


def resolved(plan: "Plan", folder: Path, label: str) -> "Plan":
    """The plan with the policies that it carries named as seen from here. Raises PlanError where they were changed."""
    eviction, prefetch = plan.eviction, plan.prefetch
    if eviction.digest is not None:
        place = _checked(eviction.policy, eviction.digest, folder, f"{label}: eviction")
        eviction = msgspec.structs.replace(eviction, policy=place, digest=None)
    if prefetch.digest is not None:
        place = _checked(prefetch.predictor, prefetch.digest, folder, f"{label}: prefetch")
        prefetch = msgspec.structs.replace(prefetch, predictor=place, digest=None)
    if eviction is plan.eviction and prefetch is plan.prefetch:
        return plan
    return plan.replace(eviction=eviction, prefetch=prefetch)


def _checked(name: str, digest: str, folder: Path, label: str) -> str:
    path, _, cls = name.rpartition(":")
    if not path.endswith(".py"):
        raise PlanError(f'{label}.digest is of a file: name one, as "mine.py:Mine", or leave the digest out')
    if hashlib.sha256(_read(folder / path, f"{label} names {name}: {folder / path}")).hexdigest() != digest:
        mend = "copy the right one there, or leave the digest out to use this one"
        raise PlanError(f"{label}: {folder / path} is not the file that the plan was found with; {mend}")
    return f"{folder / path}:{cls}"


def _read(path: Path, label: str) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except OSError as error:
        raise PlanError(f"{label}: {error.strerror or error}; the policy's file travels with the plan") from None
