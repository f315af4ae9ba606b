"""Plans that travel: a user's policy, or a placement, lies beside the plan that names it, under a digest that is
checked when read.

`eviction.policy = "mine-1a2b3c4d.py:Mine"` with `eviction.digest` (`routing` alike; of a prefetcher, `predictor` and
`digest`; of a placement, `pinned` or `warm` and `digest`) is relative to the plan's folder, wherever that has been
copied to. Without a digest a path is relative to where the command runs, as on the command line.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from tracekit.errors import PlanError
from tracekit.opening import read_file

MOST_BYTES = 16 << 20
"""Of a policy's file."""
NAMED = {
    **{"eviction": "policy", "prefetch": "predictor", "admission": "policy"},
    **{"routing": "policy", "precision": "rule"},
}
"""Tables of a plan that name a policy, and their key for it."""
PLACED = {"placement": "pinned", "cache": "warm"}
"""The same of a placement's file."""
T = TypeVar("T")


class Carried(NamedTuple):
    """The tables of a plan as they are to be written, and the files that lie beside it, by name."""

    tables: dict[str, dict[str, str | int | float | bool]]
    files: dict[str, bytes]


def carried(tables: Mapping[str, Mapping[str, str | int | float | bool]], below: str = "") -> Carried:
    """A plan's tables with its files named by digest, in the folder `below` the plan's. Raises PlanError."""
    files: dict[str, bytes] = {}
    found = {name: dict(table) for name, table in tables.items()}
    for name, key in NAMED.items():
        path, _, cls = str(found.get(name, {}).get(key, "")).rpartition(":")
        if not path.endswith(".py"):
            continue
        data = _read(Path(path), f"{name}.{key}: {path}", "policy")
        digest = hashlib.sha256(data).hexdigest()
        file = f"{Path(path).stem}-{digest[:8]}.py"
        files[file] = data
        found[name] |= {key: f"{below}{file}:{cls}", "digest": digest}
    for name, key in PLACED.items():
        place = str(found.get(name, {}).get(key, ""))
        if not place.endswith(".toml"):
            continue
        data = _read(Path(place), f"{name}.{key}: {place}", "placement")
        digest = hashlib.sha256(data).hexdigest()
        file = f"{Path(place).name.partition('.')[0]}-{digest[:8]}.placement.toml"
        files[file] = data
        found[name] |= {key: f"{below}{file}", "digest": digest}
    return Carried(found, files)


def resolved(tables: Mapping[str, T], folder: Path, label: str) -> dict[str, T | dict[str, object]]:
    """The tables of a plan's file with what it carries named as seen from here, and no digests.

    Raises PlanError where a file is missing, or was changed.
    """
    found: dict[str, T | dict[str, object]] = dict(tables)
    for name, key in NAMED.items():
        table = found.get(name)
        if isinstance(table, dict) and "digest" in table:
            place = _checked(str(table.get(key, "")), str(table["digest"]), folder, f"{label}: {name}")
            found[name] = {own: value for own, value in table.items() if own != "digest"} | {key: place}
    for name, key in PLACED.items():
        table = found.get(name)
        if isinstance(table, dict) and "digest" in table:
            file = str(table.get(key, ""))
            _verify(folder / file, str(table["digest"]), f"{label}: {name}", "placement")
            found[name] = {own: value for own, value in table.items() if own != "digest"} | {key: str(folder / file)}
    return found


def _checked(name: str, digest: str, folder: Path, label: str) -> str:
    path, _, cls = name.rpartition(":")
    if not path.endswith(".py"):
        raise PlanError(f'{label}.digest is of a file: name one, as "mine.py:Mine", or leave the digest out')
    _verify(folder / path, digest, label, "policy")
    return f"{folder / path}:{cls}"


def _verify(path: Path, digest: str, label: str, what: str) -> None:
    if hashlib.sha256(_read(path, f"{label}: {path}", what)).hexdigest() != digest:
        mend = "copy the right one there, or leave the digest out to use this one"
        raise PlanError(f"{label}: {path} is not the file that the plan was found with; {mend}")


def _read(path: Path, label: str, what: str) -> bytes:
    try:
        return read_file(path, MOST_BYTES)
    except OSError as error:
        raise PlanError(f"{label}: {error.strerror or error}; the {what}'s file travels with the plan") from None
