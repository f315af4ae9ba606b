"""Reading given text: the logits of each of its tokens, in the engine's own passes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.runtime.offload_state import offloaded
from experiments.quality.text import Tokens
from tracekit.recorder.generation import Batch


class Reading(Batch):
    """One window of a text, read in passes of `chunk` tokens, each of which sees those before it."""

    def __init__(self, model: nn.Module, window: NDArray[np.int64], chunk: int) -> None:
        super().__init__(model, [window.tolist()])
        self.window, self.chunk = window, chunk
        self.check_chunks(chunk)

    def logits(self) -> Iterator[Tensor]:
        """Of each pass [tokens, vocabulary]; all of them together predict what follows each token of the window."""
        for start in range(0, len(self.window), self.chunk):
            ids = self.window[None, start : start + self.chunk]
            positions = np.arange(start, start + ids.shape[1])[None]
            yield self.fed(ids, None, positions)[0]


def read(model: nn.Module, tokens: Tokens, window: int, chunk: int) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """A document through an offloaded model, teacher-forced: the logits of each pass [n, vocabulary], and the tokens
    that they are to predict i64 [n].

    The cache begins as it would for the first request, so that documents are independent of their order.
    """
    offloaded(model).reset()
    for part in tokens.windows(window):
        start = 1
        for logits in Reading(model, part[:-1], chunk).logits():
            yield logits, part[start : start + len(logits)]
            start += len(logits)
