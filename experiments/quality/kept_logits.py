"""The unaltered model's logits of some documents, on disk: two models are never in memory together.

They are kept bit for bit as they came, whatever their type, and read back a pass at a time.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from experiments.quality.text import Tokens
from tracekit.durable import reporting
from tracekit.errors import StudyError, shortened

NUMBER_BYTES = 4
"""Of a logit at most."""
MOST_BYTES = 4 << 30
"""That logits take on disk at a time, where nothing else is said."""


class KeptLogits:
    """The logits of one document, in a file. First all of them are added, then all are read in the same pieces."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._dtype: torch.dtype | None = None
        self._read = 0
        with reporting(path):
            path.unlink(missing_ok=True)

    def add(self, logits: Tensor) -> None:
        """Keep the logits [n, vocabulary] of the next pass. Raises TraceError where they cannot be written."""
        self._dtype = logits.dtype
        data = logits.cpu().contiguous().view(torch.uint8).numpy()
        with reporting(self.path), self.path.open("ab") as file:
            file.write(data.data)

    def rewind(self) -> None:
        """Read from the beginning."""
        self._read = 0

    def next(self, like: Tensor) -> Tensor:
        """Of the pass that is next, as many as `like` [n, vocabulary] has."""
        assert self._dtype is not None
        size = like.numel() * self._dtype.itemsize
        with reporting(self.path), self.path.open("rb") as file:
            file.seek(self._read)
            data = bytearray(file.read(size))
        if len(data) != size:
            raise StudyError(f"{self.path} was changed while it was in use: run the same command again")
        self._read += size
        return torch.frombuffer(data, dtype=self._dtype).view(like.shape)


def groups(documents: Sequence[Tokens], vocabulary: int, folder: Path, most: int | None) -> list[list[Tokens]]:
    """The documents in groups whose logits lie on disk together: `most` bytes, or less where the disk has less.

    Raises StudyError where a document alone takes more.
    """
    free = shutil.disk_usage(folder).free
    room = min(MOST_BYTES if most is None else most, free - free // 10)
    found: list[list[Tokens]] = []
    taken = room + 1
    for document in documents:
        size = document.count * vocabulary * NUMBER_BYTES
        if size > room:
            raise StudyError(
                f"document {shortened(document.document.id)!r} takes up to {size} bytes on disk for the unaltered "
                f"model's logits, and there are {room}: give --scratch more, or cut the document"
            )
        if taken + size > room:
            found.append([])
            taken = 0
        found[-1].append(document)
        taken += size
    return found
