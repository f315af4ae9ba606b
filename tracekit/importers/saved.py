"""Text files as people save them: plain, gzip or zstd, with a byte order mark or without, in UTF-8 or UTF-16."""

import codecs
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tracekit.decoding import guarded
from tracekit.errors import ImportFormatError
from tracekit.opening import checked, open_file, read_file
from tracekit.shards import installed_memory

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZIP = b"PK\x03\x04"
_ZSTD_BLOCK = 128 << 10  # no block of zstd holds more (RFC 8878, section 3.1.1.2.4)
_HEAD = 1 << 20
_LONGEST_LINE = 256 << 20
_TEXT_ENCODINGS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def refuse_pickle(source: Path) -> None:
    """Raise ImportFormatError where `source` is a pickle, torch's files among them: opening one may run anything."""
    with open_file(source) as file:
        head = file.read(4)
    torch = False
    if head == _ZIP:
        try:
            with open_file(source) as file, zipfile.ZipFile(file) as archive:
                torch = any(name.endswith("data.pkl") for name in archive.namelist())
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
            return  # whoever reads it says so
    if torch or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
        kind = "torch file" if torch else "pickle (as torch and Python save them)"
        raise ImportFormatError(
            f"{source} is a {kind}, which may run code when it is opened: open it yourself where you trust it, save "
            "the expert ids with numpy.savez(..., experts=...) and import that as npz"
        )


def read_text(source: Path, inflation: int) -> bytes:
    """What the file says, unpacked, in UTF-8 without a byte order mark.

    `inflation` is how many bytes a reader makes of one byte of text. Raises ImportFormatError when that does not fit
    into this machine's memory, or a packed file is damaged.
    """
    limit = installed_memory() // inflation
    size = source.stat().st_size
    with open_file(source) as file:
        head = file.read(4)
    if size > limit:
        raise _too_large(source, size)
    if head.startswith(_GZIP):
        data = _gunzip(source, limit)
    elif head == _ZSTD:
        data = _unzstd(source, limit)
    else:
        data = read_file(source, limit)
    return _in_utf8(data)


def head_of(source: Path) -> bytes:
    """The first bytes of what the file holds, unpacked as `read_text` does."""
    with open_file(source) as file:
        head = file.read(_HEAD)
    if head.startswith(_ZSTD):
        return read_text(source, 1)[:_HEAD]
    if head.startswith(_GZIP):
        try:
            with open_file(source) as file, gzip.open(file) as packed:
                head = packed.read(_HEAD)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ImportFormatError(f"{source} is not a whole gzip file: {error}") from None
    return _in_utf8(head)


def _in_utf8(data: bytes) -> bytes:
    for mark, encoding in _TEXT_ENCODINGS.items():
        if data.startswith(mark):
            data = data[len(mark) :]
            return data if encoding == "utf-8" else data.decode(encoding, "replace").encode()
    return data


def lines_of(source: Path, data: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, numbered from 1; ImportFormatError for one that no log has."""
    for number, line in enumerate(io.BytesIO(data), 1):
        if len(line) >= _LONGEST_LINE:
            raise ImportFormatError(f"{source}, line {number} is longer than {_LONGEST_LINE >> 20} MiB: not a dump")
        if line.strip():
            yield number, line


def _too_large(source: Path, size: int) -> ImportFormatError:
    return ImportFormatError(f"{source} has {size >> 20} MiB, too large to import on this machine: split it")


def _gunzip(source: Path, limit: int) -> bytes:
    parts, size = [], 0
    try:
        with open_file(source) as packed, gzip.open(packed) as file:
            while part := file.read(1 << 20):
                size += len(part)
                if size > limit:
                    raise _too_large(source, size)
                parts.append(part)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImportFormatError(f"{source} is not a whole gzip file: {error}") from None
    return b"".join(parts)


def _unzstd(source: Path, limit: int) -> bytes:
    import polars as pl  # unpacks zstd, which Python itself learns in 3.14

    if (most := _zstd_bound(read_file(source, limit))) > limit:
        raise _too_large(source, most)
    try:
        with guarded(source):
            lines = pl.scan_lines(checked(source), glob=False).collect()["line"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        first = (str(error).splitlines() or ["unreadable"])[0]
        raise ImportFormatError(f"{source} is not a whole zstd file: {first[:200]}") from None
    return b"\n".join(line.encode() for line in lines)


def _zstd_bound(data: bytes) -> int:
    """No fewer bytes than a zstd file unpacks to, by the headers of its blocks; what is damaged counts as nothing."""
    total, at = 0, 0
    while at + 6 <= len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to skip
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if data[at : at + 4] != _ZSTD:
            break
        descriptor = data[at + 4]
        single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        content = (single, 2, 4, 8)[descriptor >> 6]
        at += 5 + (not single) + (0, 1, 2, 4)[descriptor & 3] + content
        last = False
        while not last and at + 3 <= len(data):
            header = int.from_bytes(data[at : at + 3], "little")
            last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            total += min(size, _ZSTD_BLOCK) if kind < 2 else _ZSTD_BLOCK
            at += 3 + (1 if kind == 1 else size)
        at += 4 * checksum
    return total
