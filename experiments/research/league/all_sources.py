"""The sources of the league, in the page's order."""

from pathlib import Path

from experiments.research.league.batched_h100 import batched_h100
from experiments.research.league.entries import Source
from experiments.research.league.left_open import left_open
from experiments.research.league.lru_sweep import lru_sweep
from experiments.research.league.phone import phone
from experiments.research.league.table2 import table2


def all_sources(data: Path) -> list[Source]:
    """Every source; `data` is the folder of reference data. Raises StudyError where it is not there. Takes seconds."""
    return [batched_h100(data), table2(), lru_sweep(), phone(data), left_open()]
