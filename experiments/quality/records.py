"""Records of what was measured, a line for each document and plan, synced as they come: killed runs go on from them."""

import os
from pathlib import Path

import msgspec

from tracekit.durable import TEMPORARY, lock_directory, reporting, write_synced
from tracekit.errors import StudyError, shortened
from tracekit.opening import read_file

RECORDS = "documents.jsonl"
MOST_BYTES = 4 << 30


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One document under one plan; `key` is a digest of all that the figures follow from. Of the unaltered model
    nothing diverges."""

    key: str
    document: str
    plan: str
    tokens: int
    nats: float
    kl_nats: float = 0.0
    agreed: int = 0


class Records:
    """The records in a folder, by key. While it is open (`with`) no other process writes there.

    Raises StudyError where the folder is somebody else's, TraceError where it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / RECORDS
        begun = folder / (RECORDS + TEMPORARY)  # by a run that was killed at once
        if folder.exists() and not (folder.is_dir() and (self.path.is_file() or set(folder.iterdir()) <= {begun})):
            raise StudyError(f"{folder} exists and holds no measurement of quality: choose another with --output")
        with reporting(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_directory(folder)
            for unfinished in folder.glob(f"*{TEMPORARY}"):
                unfinished.unlink()
        self._known = self._finished()

    def __enter__(self) -> "Records":
        return self

    def __exit__(self, *problem: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _finished(self) -> dict[str, Record]:
        """What is there. A line that a killed run left unfinished is cut off; a damaged one is as if it were not."""
        try:
            data = read_file(self.path, MOST_BYTES) if self.path.exists() else b""
        except OSError as error:
            raise StudyError(f"{self.path} cannot be read: {error.strerror or error}") from None
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data) or not data:
            with reporting(self.path):
                write_synced(self.path, lambda file: file.write(whole))
        found: dict[str, Record] = {}
        for line in whole.splitlines():
            try:
                record = msgspec.json.decode(line, type=Record)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                continue
            found.setdefault(record.key, record)
        return found

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Record:
        return self._known[key]

    def add(self, record: Record) -> None:
        """Keep a record, on disk before anything else is done; one that is known must say the same. StudyError else."""
        known = self._known.get(record.key)
        if known is not None:
            if _figures(known) != _figures(record):
                raise StudyError(
                    f"{shortened(record.document)!r} under {record.plan} came out otherwise than {self.path} has it: "
                    "another processor, or another number of threads? Give another --output"
                )
            return
        with reporting(self.path), self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._known[record.key] = record


def _figures(record: Record) -> tuple[int, float, float, int]:
    return record.tokens, record.nats, record.kl_nats, record.agreed
