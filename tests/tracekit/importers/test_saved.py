"""Files as people save them: packed, marked, in another encoding; and what packing may not do."""

import base64
import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from tracekit.errors import ImportFormatError
from tracekit.importers import import_trace
from tracekit.importers.saved import read_text

LINES = [{"token": token, "layer": layer, "ids": ids} for token, layer, ids in
         [(0, 0, [1, 2]), (0, 1, [3, 0]), (1, 0, [0, 2]), (1, 1, [1, 3])]]  # fmt: skip
TEXT = "".join(json.dumps(line) + "\n" for line in LINES)
# The same, packed by zstd 1.5 from a file and from a pipe, which leaves the size out of the header.
FROM_FILE = (
    "KLUv/SSgRQIABAN7InRva2VuIjogMCwgImxheWVyaWRzIjogWzEsIDJdfQox"
    "MywgMDEwMDEsIDNdfQoJAMAA4GAK6MBmwBDgENiupZT6rIQB4JwT2Q=="
)
FROM_PIPE = (
    "KLUv/QRYRQIABAN7InRva2VuIjogMCwgImxheWVyaWRzIjogWzEsIDJdfQox"
    "MywgMDEwMDEsIDNdfQoJAMAA4GAK6MBmwBDgENiupZT6rIQB4JwT2Q=="
)
PACKED = {
    "plain": TEXT.encode(),
    "marked": b"\xef\xbb\xbf" + TEXT.encode(),
    "utf-16": TEXT.encode("utf-16"),
    "windows": TEXT.replace("\n", "\r\n").encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "zstd": base64.b64decode(FROM_FILE),
    "zstd from a pipe": base64.b64decode(FROM_PIPE),
}


@pytest.mark.parametrize("how", PACKED)
def test_the_same_comes_out(tmp_path: Path, how: str) -> None:
    source = tmp_path / "dump"
    source.write_bytes(PACKED[how])
    trace = import_trace("jsonl", source, tmp_path / "a.trace")
    assert trace.experts.tolist() == [[[1, 2], [3, 0]], [[0, 2], [1, 3]]]


def zstd_of_zeros(blocks: int) -> bytes:
    """A zstd frame that unpacks to so many blocks of 128 KiB of one byte."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"0"
    last = (1 << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"0"
    return b"\x28\xb5\x2f\xfd\x00\x50" + block * blocks + last


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
@pytest.mark.parametrize("format_name", ["jsonl", "vllm", "llama-csv"])
def test_damaged_and_hostile_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: str, format_name: str
) -> None:
    """A cut file is said to be one; one that would fill the memory is refused before it does."""
    source = tmp_path / "dump"
    source.write_bytes(PACKED[packed][:-9])
    with pytest.raises(ImportFormatError, match=f"dump is not a whole {packed} file"):
        import_trace(format_name, source, tmp_path / "a.trace")
    monkeypatch.setattr("tracekit.importers.saved.installed_memory", lambda: 64 << 20)
    source.write_bytes(gzip.compress(b"0" * (16 << 20)) if packed == "gzip" else zstd_of_zeros(1 << 12))
    tracemalloc.start()
    with pytest.raises(ImportFormatError, match="too large to import"):
        import_trace(format_name, source, tmp_path / "a.trace")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_what_is_refused_is_what_would_come_out(tmp_path: Path) -> None:
    """The frame above is a real one: of eight blocks it is unpacked, and is no dump."""
    source = tmp_path / "dump"
    source.write_bytes(zstd_of_zeros(8))
    assert read_text(source, 1) == b"0" * (8 * (128 << 10) + 1)
