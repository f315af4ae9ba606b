"""What a study leaves in its folder. Every file is there whole or not at all, so a killed study resumes."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from experiments.study.schema import SCHEMA
from tracekit.durable import TEMPORARY, lock_directory, reporting, write_synced
from tracekit.errors import StudyError

PIECES, REGRETS = "cells", "regrets"
RESULTS, CURVES, REGRET, SUMMARY, WINNER, COPY = (
    "results.parquet",
    "curves.parquet",
    "regret.parquet",
    "study.json",
    "winner.plan.toml",
    "study.toml",
)


class Store:
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

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def pieces(self, kind: str, schema: dict[str, Any]) -> pl.DataFrame:
        """Every row of every finished piece; a cell's first if it was computed twice."""
        found = []
        for path in sorted((self.folder / kind).glob("*.parquet")):
            try:
                found.append(pl.read_parquet(path, glob=False))
            except (pl.exceptions.PolarsError, OSError):  # damaged: as if it had never been
                continue
            if dict(found[-1].schema) != schema:
                found.pop()
        return pl.concat(found).unique("cell", keep="first") if found else pl.DataFrame(schema=schema)

    def add(self, kind: str, name: str, rows: Iterable[dict[str, Any]], schema: dict[str, Any]) -> None:
        """Write a finished piece."""
        self.frame(f"{kind}/{name}.parquet", pl.DataFrame(list(rows), schema=schema))

    def frame(self, name: str, frame: pl.DataFrame) -> None:
        """Write a table."""
        path = self.folder / name
        with reporting(path):
            write_synced(path, lambda file: frame.write_parquet(file, compression="zstd", statistics=False))

    def text(self, name: str, text: str) -> None:
        """Write a text file."""
        path = self.folder / name
        with reporting(path):
            write_synced(path, lambda file: file.write(text.encode()))

    def remove(self, name: str) -> None:
        """A file of an earlier study that this one does not write."""
        with reporting(self.folder / name):
            (self.folder / name).unlink(missing_ok=True)


def read_results(folder: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A finished study's rows and its summary. Raises StudyError when `folder` holds none."""
    try:
        frame = pl.read_parquet(folder / RESULTS, glob=False)
        summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    except FileNotFoundError as missing:
        unfinished = " (it is unfinished: run tracekit study again)" if (folder / PIECES).is_dir() else ""
        name = Path(missing.filename or RESULTS).name
        raise StudyError(f"{folder} holds no finished study{unfinished}: no {name}") from None
    except (pl.exceptions.PolarsError, OSError, ValueError) as problem:
        raise StudyError(f"{folder}: the study's results cannot be read: {problem}") from None
    lacking = sorted(set(SCHEMA) - set(frame.columns))
    if lacking:
        raise StudyError(f"{folder}: the results are of another version: no column {lacking[0]!r}")
    return frame, summary


def read_table(folder: Path, name: str, schema: dict[str, Any]) -> pl.DataFrame:
    """Another table of a study, empty where there is none."""
    try:
        return pl.read_parquet(folder / name, glob=False)
    except FileNotFoundError:
        return pl.DataFrame(schema=schema)
    except (pl.exceptions.PolarsError, OSError) as problem:
        raise StudyError(f"{folder / name} cannot be read: {problem}") from None
