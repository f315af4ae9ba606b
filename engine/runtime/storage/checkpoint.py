"""`Checkpoint`: the safetensors files of a model, of which any tensor, or part of one, is read when it is asked for.

Files are read, not mapped: what is read lies in memory once and goes when it is dropped, and a file that shrinks or a
disk that fails is an error and not a signal.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tracekit.errors import ModelError
from tracekit.recorder.files import check_weights, weight_files

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: its name, the file that holds it, and its shape."""

    name: str
    file: Path
    shape: tuple[int, ...]
    handle: Any

    @property
    def kind(self) -> torch.dtype | None:
        """The type of its values, if models compute in it: None for integers and codes of a quantised format."""
        return _FLOATS.get(str(self.handle.get_dtype()))

    def read(self, first: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """All of it, or entry `first` of its first dimension as [1, ...], in memory of its own. ModelError."""
        try:
            value: Tensor = self.handle[...] if first is None else self.handle[first : first + 1]
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{self.file} cannot be read at {self.name}: {str(error)[:200]}") from None
        return value if dtype is None else value.to(dtype)


class Checkpoint:
    """The tensors of the model at `directory`, by name. ModelError when a file is missing, truncated or damaged."""

    def __init__(self, directory: Path) -> None:
        check_weights(directory)
        self.directory = directory
        self.files = weight_files(directory)
        self._tensors: dict[str, Stored] = {}
        self._open = ExitStack()
        with ExitStack() as opened:
            for path in self.files:
                try:
                    file = opened.enter_context(safe_open(path, framework="pt", device="cpu", backend="pread"))
                    for name in file.keys():  # noqa: SIM118  # no mapping
                        handle = file.get_slice(name)
                        self._tensors[name] = Stored(name, path, tuple(handle.get_shape()), handle)
                except (SafetensorError, OSError, ValueError) as error:
                    raise ModelError(f"{path} is truncated or damaged: {str(error)[:200]}") from None
            self._open = opened.pop_all()

    def __getitem__(self, name: str) -> Stored:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def close(self) -> None:
        """Close the files. A second call does nothing."""
        self._tensors.clear()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
