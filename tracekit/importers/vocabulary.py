"""Ids of tokens that a log gives as the pieces of a vocabulary."""

from pathlib import Path

import msgspec

from tracekit.errors import ImportFormatError
from tracekit.opening import read_file


class _Added(msgspec.Struct):
    id: int
    content: str


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_Added] = []


_MOST_BYTES = 256 << 20


class Vocabulary:
    """The vocabulary of a `tokenizer.json`, or of the directory that holds one. `unknown` counts pieces without an id.

    Raises ImportFormatError when it is none.
    """

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json" if path.is_dir() else path
        self.unknown = 0
        try:
            found = msgspec.json.decode(read_file(file, _MOST_BYTES), type=_Tokenizer)
        except OSError as error:
            raise ImportFormatError(f"tokenizer {file}: {error.strerror or error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ImportFormatError(f"{file} is not a tokenizer.json: {error}") from None
        vocab = found.model.vocab
        pieces = vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
        self._ids = pieces | {token.content: token.id for token in found.added_tokens}

    def id_of(self, piece: str) -> int:
        """The id of a piece; -1 for none."""
        number = self._ids.get(piece, -1)
        self.unknown += number < 0
        return number if 0 <= number < 2**31 else -1
