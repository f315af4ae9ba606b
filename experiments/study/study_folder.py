"""What a study leaves in its folder. Every file is there whole or not at all, so a killed study resumes."""

import contextlib
import hashlib
import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path

import msgspec
import polars as pl

from experiments.study import schema
from experiments.study.schema import Columns
from experiments.study.study_json import Summary
from experiments.study.study_tables import read_table
from tracekit.durable import TEMPORARY, check_place, lock_directory, reporting, write_synced
from tracekit.errors import StudyError
from tracekit.opening import read_file

PIECES, REGRETS, WINNERS = "cells", "regrets", "winners"
RESULTS, EFFECTS, CURVES, REGRET, SEARCH, EXPERTS, TIMELINE, SUMMARY, WINNER, COPY = (
    "results.parquet",
    "effects.parquet",
    "curves.parquet",
    "regret.parquet",
    "search.parquet",
    "experts.parquet",
    "timeline.parquet",
    "study.json",
    "winner.plan.toml",
    "study.toml",
)
VALIDATION = "validation.json"
"""Not written by a study: what `tracekit validate --json` printed of its winner, where somebody put it there."""
MOST_BYTES, MOST_SUMMARY_BYTES, MOST_SOURCE_BYTES = 4 << 30, 256 << 20, 16 << 20
TABLES = {
    RESULTS: schema.SCHEMA,
    EFFECTS: schema.EFFECTS,
    CURVES: schema.CURVES,
    REGRET: schema.REGRET,
    SEARCH: schema.SEARCH,
    EXPERTS: schema.EXPERTS,
    TIMELINE: schema.TIMELINE,
}


class StudyFolder:
    """A study's folder. While it is open (`with`) no other process writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        fresh = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        if not fresh and not (folder / PIECES).is_dir():
            raise StudyError(f"{folder} exists and is no study's folder: choose another with --output")
        with reporting(folder):
            for name in (PIECES, REGRETS):
                (folder / name).mkdir(parents=True, exist_ok=True)
            self._lock = lock_directory(folder)
            for name in (PIECES, REGRETS):
                for unfinished in (folder / name).glob(f"*{TEMPORARY}"):
                    unfinished.unlink()

    def __enter__(self) -> "StudyFolder":
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def pieces(self, kind: str, columns: Columns) -> pl.DataFrame:
        """Every row of every finished piece; a cell's first if it was computed twice."""
        found = []
        for path in sorted((self.folder / kind).glob("*.parquet")):
            try:
                data = read_file(path, MOST_BYTES)
                # Damaged, or not what a study writes: as if it had never been.
                if path.name.split(".")[1] == sha256(data)[:32]:
                    found.append(read_table(data, columns, str(path)))
            except (OSError, ValueError):
                continue
        return pl.concat(found).unique("cell", keep="first") if found else pl.DataFrame(schema=columns)

    @staticmethod
    def finished(folder: Path) -> set[str]:
        """The cells of every finished piece."""
        found: set[str] = set()
        for path in (folder / PIECES).glob("*.parquet"):
            with contextlib.suppress(OSError, ValueError, pl.exceptions.PolarsError):
                data = read_file(path, MOST_BYTES)
                if path.name.split(".")[1] == sha256(data)[:32]:
                    found.update(pl.read_parquet(io.BytesIO(data), columns=["cell"])["cell"])
        return found

    def add(self, kind: str, name: str, rows: pl.DataFrame) -> None:
        """Write a finished piece. Its name ends with what it holds: polars may crash on a damaged file."""
        data = parquet(rows)
        self.write(f"{kind}/{name}.{sha256(data)[:32]}.parquet", data)

    def write(self, name: str, data: bytes) -> str:
        """Write a file; returns its sha256."""
        path = self.folder / name
        check_place(path)
        with reporting(path):
            write_synced(path, lambda file: file.write(data))
        return sha256(data)

    def remove(self, name: str) -> None:
        """A file of an earlier study that this one does not write."""
        with reporting(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)

    def write_winners(self, files: Mapping[str, bytes]) -> None:
        """The winners' plans and the policies that they name, by file; those of an earlier study go."""
        with reporting(self.folder / WINNERS):
            (self.folder / WINNERS).mkdir(exist_ok=True)
            for path in (self.folder / WINNERS).iterdir():
                if path.is_file() and path.name not in files:
                    path.unlink()
        for name, data in files.items():
            self.write(f"{WINNERS}/{name}", data)


def holds_another(folder: Path, source: str, keys: Collection[str]) -> bool:
    """Whether `folder` holds what another study left: its file is another one, and none of its results is of `keys`."""
    if not (folder / PIECES).is_dir() or not (folder / COPY).is_file():
        return False
    with contextlib.suppress(OSError, ValueError):
        if source and read_file(folder / COPY, MOST_SOURCE_BYTES) == source.encode():
            return False
    done = StudyFolder.finished(folder)
    return bool(done) and not done.intersection(keys)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def parquet(frame: pl.DataFrame) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    frame.write_parquet(file, compression="zstd", statistics=False)
    return file.getvalue()


def read_study(folder: Path) -> tuple[dict[str, pl.DataFrame], Summary]:
    """A finished study's tables by file name, and its summary. Raises StudyError when `folder` holds none."""
    again = "run tracekit study again"
    try:
        data = {}
        for name in TABLES:
            data[name] = read_file(folder / name, MOST_BYTES)
            if not data[name].startswith(b"PAR1"):
                raise StudyError(f"{folder}: the study's results cannot be read: {name} is no Parquet file; {again}")
        summary = msgspec.json.decode(read_file(folder / SUMMARY, MOST_SUMMARY_BYTES), type=Summary)
    except FileNotFoundError as missing:
        unfinished = f" (it is unfinished: {again})" if (folder / PIECES).is_dir() else ""
        name = Path(missing.filename).name
        raise StudyError(f"{folder} holds no finished study{unfinished}: no {name}") from None
    except msgspec.ValidationError:
        raise StudyError(f"{folder}: {SUMMARY} is of another version, or damaged: {again}") from None
    except OSError as problem:
        where = Path(problem.filename or folder).name
        raise StudyError(f"{folder}: the study's results cannot be read: {where}: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise StudyError(f"{folder}: the study's results cannot be read: {problem}") from None
    tables = {}
    for name, columns in TABLES.items():
        # Damaged, or left behind by a study that was interrupted: not what the summary speaks of.
        if summary.files.get(name) != sha256(data[name]):
            raise StudyError(f"{folder}: {SUMMARY} and {name} do not belong together: {again}")
        try:
            tables[name] = read_table(data[name], columns, str(folder / name))
        except ValueError as problem:
            raise StudyError(f"{folder}: {name} is damaged or of another version: {problem}; {again}") from None
    return tables, summary
