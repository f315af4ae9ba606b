"""The tables of a study, checked as structures when they are read: a right digest says nothing of who wrote them."""

import io
from collections.abc import Collection

import polars as pl

from experiments.study import schema
from experiments.study.schema import Columns
from tracekit.decoding import guarded
from tracekit.errors import shortened

MOST_ROWS = 20_000_000
"""Of a table: many times the largest study, and less than what a file of some kilobytes may announce."""
MOST_SQUARES = 4_000_000
"""Experts of all layers of a trace; large models have some ten thousands."""
_ALWAYS = ("cell", "trace", "trace_digest", "plan", "plan_toml")
_OF_SOUND = (
    *("capacity", "eviction", "prefetch", "needs_future", "tokens", "decode_tokens", "lookups", "hits", "misses"),
    *("decode_lookups", "decode_hits"),
)
"""Of rows without an error."""
_BY_REQUEST = tuple(name for name in schema.SCHEMA if name.startswith("request_"))
_MAY_MISS = {
    *("hardware", "engine", "hardware_digest", "model_shape", "batch", "value", "place", "label"),
    *("weights", "low", "high", "corrected"),
    *schema.BETTER.values(),
}
"""Of the tables beside the results."""


def read_table(data: bytes, columns: Columns, name: str = "the table") -> pl.DataFrame:
    """The table in a Parquet file named so; ValueError, saying what is wrong, unless a study could have written it."""
    if not data.startswith(b"PAR1"):
        raise ValueError("it is no Parquet file")
    try:
        with guarded(name):
            rows = pl.scan_parquet(io.BytesIO(data)).select(pl.len()).collect().item()
            if rows > MOST_ROWS:
                raise ValueError(f"it announces {rows} rows, more than {MOST_ROWS}")
            frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, TypeError) as error:
        raise ValueError(f"it is no readable Parquet file: {shortened(' '.join(str(error).split()), 200)}") from None
    if dict(frame.schema) != columns:
        raise ValueError("it is of another version, with other columns")
    if columns == schema.SCHEMA:
        _check_cells(frame)
    else:
        _filled(frame, set(columns) - _MAY_MISS)
    for name in columns:
        _check_values(frame[name], signed=columns == schema.REGRET)
    if columns == schema.EXPERTS:
        _check_extent(frame)
    if columns == schema.REGRET and (frame["steps"] < 1).any():
        raise ValueError("column steps holds no number of steps")
    return frame


def _check_extent(frame: pl.DataFrame) -> None:
    """A picture has a square for every expert up to the largest of every layer: few rows may ask for very many."""
    squares = frame.group_by("trace").agg(pl.col("layer").n_unique().cast(pl.Float64) * (pl.col("expert").max() + 1.0))
    if (squares["layer"] > MOST_SQUARES).any():
        raise ValueError(f"it speaks of more than {MOST_SQUARES} experts of a trace")


def _check_cells(frame: pl.DataFrame) -> None:
    _filled(frame, _ALWAYS)
    sound = frame.filter(pl.col("error").is_null())
    _filled(sound, _OF_SOUND)
    for name in _BY_REQUEST:
        told = sound.filter(pl.col(name).is_not_null())
        if not told[name].list.len().eq_missing(told["request"].list.len()).all():
            raise ValueError(f"column {name} is not about the requests of its rows")
    codes = frame.select(pl.col("warnings").list.len().eq_missing(pl.col("warning_codes").list.len()))
    if not codes.to_series().all():
        raise ValueError("column warning_codes is not about the warnings of its rows")


def _check_values(column: pl.Series, *, signed: bool) -> None:
    if isinstance(column.dtype, pl.List):
        told = column.drop_nulls()
        if (told.list.drop_nulls().list.len() != told.list.len()).any():
            raise ValueError(f"column {column.name} holds lists with holes")
        column = told.explode().drop_nulls().rename(column.name)
    column = column.drop_nulls()
    if column.dtype.is_float() and not column.is_finite().all():
        raise ValueError(f"column {column.name} holds what is no number")
    if column.dtype.is_integer() and not signed and (column < 0).any():
        raise ValueError(f"column {column.name} holds negative numbers")


def _filled(frame: pl.DataFrame, names: Collection[str]) -> None:
    for name in names:
        if frame[name].null_count():
            raise ValueError(f"column {name} has holes")
