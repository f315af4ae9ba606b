"""A study's tables are checked as structures: a table that no study writes is refused, whatever its digest."""

import io
import os
from pathlib import Path

import polars as pl
import pytest

from experiments.study import schema, study_folder
from experiments.study.schema import Columns
from experiments.study.study_folder import StudyFolder, parquet, read_study, sha256
from experiments.study.study_tables import read_table
from experiments.study.trace_overviews import curve_sets
from tracekit.errors import StudyError

BAR = {
    "hardware": "t4",
    "engine": "graph-fused",
    "model_shape": None,
    "batch": 1,
    "plan": "lru",
    "trace": "a",
    "step": 3,
    "layer": 0,
}
BAR |= {"layers": 1, "of_layers": 1, "lane": "link", "kind": "copy", "label": "", "begin_ms": 0.0, "end_ms": 1.5}


def table(columns: Columns, **values: object) -> bytes:
    return parquet(pl.DataFrame([values], schema=columns))


def test_a_table_that_a_study_writes_is_read() -> None:
    assert read_table(table(schema.TIMELINE, **BAR), schema.TIMELINE).row(0, named=True) == BAR
    for columns in study_folder.TABLES.values():
        assert len(read_table(parquet(pl.DataFrame(schema=columns)), columns)) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"begin_ms": None}, "begin_ms has holes"),
        ({"plan": None}, "plan has holes"),
        ({"end_ms": float("nan")}, "end_ms holds what is no number"),
        ({"layer": -1}, "layer holds negative"),
    ],
)
def test_values_that_no_study_writes(change: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_table(table(schema.TIMELINE, **(BAR | change)), schema.TIMELINE)


def test_a_policys_file_that_a_table_names_is_not_run(tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    point = {"trace": "a", "batch": 1, "scope": "layer", "slots": 1, "share": 0.5, "hit_ratio": 0.5}
    point |= {"decode_hit_ratio": 0.5, "low": 0.4, "high": 0.6, "needs_future": False, "policy": f"{evil}:P"}
    curves = read_table(table(schema.CURVES, **point), schema.CURVES)
    (found,) = curve_sets(curves, pl.DataFrame(schema=schema.SCHEMA))
    assert [one.policy for one in found.points] == [f"{evil}:P"]
    assert not (tmp_path / "ran").exists()


def test_two_rows_do_not_ask_for_a_picture_of_gigabytes() -> None:
    use = {"trace": "a", "model": "m", "layer": 0, "lookups": 1, "share": 1.0}
    assert len(read_table(table(schema.EXPERTS, **use, expert=511), schema.EXPERTS)) == 1
    with pytest.raises(ValueError, match="more than 4000000 experts"):
        read_table(table(schema.EXPERTS, **use, expert=2**62), schema.EXPERTS)


def test_other_columns_and_other_files() -> None:
    wrong = pl.DataFrame({name: [0.5] for name in schema.TIMELINE})
    with pytest.raises(ValueError, match="other columns"):
        read_table(parquet(wrong), schema.TIMELINE)
    for data in (b"", b"PAR1", b"PAR1" + b"\xff" * 200, table(schema.TIMELINE, **BAR)[:-9]):
        with pytest.raises(ValueError, match="Parquet"):
            read_table(data, schema.TIMELINE)


def test_more_rows_than_any_study_has_are_not_read() -> None:
    """A run of one value is a few bytes, however long."""
    data = io.BytesIO()
    pl.DataFrame({"a": pl.repeat(0, 30_000_000, eager=True)}).write_parquet(data, statistics=False)
    assert len(data.getvalue()) < 1_000_000
    with pytest.raises(ValueError, match="announces 30000000 rows"):
        read_table(data.getvalue(), schema.TIMELINE)


def test_pieces_that_are_none_are_as_if_they_had_never_been(tmp_path: Path) -> None:
    with StudyFolder(tmp_path / "out") as folder:
        junk = b"no Parquet at all"
        (tmp_path / "out" / "cells" / f"aa.{sha256(junk)[:32]}.parquet").write_bytes(junk)
        os.mkfifo(tmp_path / "out" / "cells" / "bb.0.parquet")
        assert len(folder.pieces("cells", schema.SCHEMA)) == 0


def test_a_pipe_among_the_results_is_refused(tmp_path: Path) -> None:
    for name in study_folder.TABLES:
        os.mkfifo(tmp_path / name)
    with pytest.raises(StudyError, match="it is a pipe, not a file"):
        read_study(tmp_path)
