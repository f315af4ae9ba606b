"""Which format a file is in, by what it holds, and why: names of files say nothing here."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tracekit.errors import ImportFormatError
from tracekit.importers import deepseek_csv, llama_csv
from tracekit.importers.arrays import MAGIC
from tracekit.importers.fields import MEANING
from tracekit.importers.saved import head_of, refuse_pickle
from tracekit.opening import open_file

_KEYS = re.compile(rb'"([A-Za-z_]{1,40})"\s*:')
_SGLANG = ("sglext", "sgl_ext", "nvext", "meta_info")


def recognise(source: Path) -> tuple[str, str]:
    """The format of `source` and what shows it. Raises ImportFormatError where nothing does."""
    if source.is_dir():
        if any(deepseek_csv.is_log(entry) for entry in source.iterdir()):
            return "deepseek-csv", "it is a folder of .csv files"
        raise ImportFormatError(f"{source} is a folder without .csv files: name a file")
    refuse_pickle(source)
    head = head_of(source)
    found = _binary(source, head) or _table(head) or _json(source, head)
    if found is None:
        raise ImportFormatError(
            f"{source} is of no format that is known: it begins with {head[:40]!r}; docs/traces.md shows each, and npz "
            "takes arrays of your own"
        )
    return found


def _binary(source: Path, head: bytes) -> tuple[str, str] | None:
    if head.startswith(b"MBLT"):
        return "mbolt", "it begins with MBLT"
    if head.startswith(b"PAR1"):
        return "parquet", "it is a Parquet file"
    if head.startswith(MAGIC):
        return "vllm", "it is one NumPy array"
    if not head.startswith(b"PK"):
        return None
    try:
        with open_file(source) as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ImportFormatError(f"{source} is not a whole zip file: {error}") from None
    for name, format_name in (("experts", "npz"), ("routed_experts", "vllm")):
        if name in names:
            return format_name, f"it holds an array {name!r}"
    raise ImportFormatError(f"{source} holds neither an array 'experts' nor 'routed_experts'")


def _table(head: bytes) -> tuple[str, str] | None:
    first = head.lstrip().split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if first.startswith("# route_trace"):
        return "bigmoe-csv", f"its first line is {first[:40]!r}"
    if deepseek_csv.is_header(first):
        return "deepseek-csv", f"its first line is {first[:60]!r}"
    if llama_csv.is_header(first):
        return "llama-csv", f"its first line is {first[:40]!r}"
    return None


def _json(source: Path, head: bytes) -> tuple[str, str] | None:
    start = head.lstrip()
    if not start.startswith((b"{", b"[", b"data:", b"event:")):
        return None
    for entry in _entries(head):
        meanings = {MEANING[name]: name for name in entry if name in MEANING}
        if {"layer", "ids"} <= meanings.keys():
            return "jsonl", f"a line has {meanings['layer']!r} and {meanings['ids']!r}"
    keys = {found.decode() for found in _KEYS.findall(head)}
    if "router_data" in keys:
        return "router-data", "it has 'router_data'"
    extra = next((name for name in _SGLANG if name in keys), None)
    if extra is not None:
        return "sglang", f"a response has {extra!r}"
    if "logical_count" in keys:
        raise ImportFormatError(
            f"{source} holds counts of experts, which are a profile and no trace: replay a trace with --policy static "
            f"--profile {source}"
        )
    if "choices" in keys:
        return "vllm", "a response has 'choices'"
    return None


def _entries(head: bytes) -> Iterator[dict[str, object]]:
    """The objects of the first lines, as far as they are whole."""
    for line in head.split(b"\n")[:64]:
        try:
            entry = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(entry, dict):
            yield entry
