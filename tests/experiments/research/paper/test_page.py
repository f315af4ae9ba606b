"""docs/paper.md says what the command says.

`python -m tests.experiments.research.paper.test_page`, in the repository's root, brings the page up to date.
"""

import json
import re
from pathlib import Path

import pytest

from experiments.research.paper.notes import NOTES
from experiments.research.paper.table2 import Table2, reproduce
from experiments.research.paper.text_tables import TABLES

PAGE = Path(__file__).resolve().parents[4] / "docs" / "paper.md"
FIGURES = PAGE.parent / "paper" / "figures.json"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def figures_table() -> str:
    """Hit ratios and recalls of the recorded figures, by cache size or experts fetched."""
    found = json.loads(FIGURES.read_text())
    hits = {int(p["capacity"].partition("/")[0]): p["decode_hit_ratio"] for p in found["hits"]}
    recall = {(p["distance"], p["fetched"]): p["recall"] for p in found["recall"]}
    distances = sorted({distance for distance, _ in recall})
    lines = [["k, or experts fetched", *(str(n) for n in hits)], ["---", *["---:"] * len(hits)]]
    lines.append(["LRU hit ratio, decode", *(f"{ratio:.3f}" for ratio in hits.values())])
    for d in distances:
        lines.append([f"recall, {d} layer{'s' * (d > 1)} ahead", *(f"{recall[d, n]:.3f}" for n in hits)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def renewed(page: str, result: Table2) -> str:
    """The page with every table and note as it should be."""
    parts = {f"table:{name}": build(result).markdown() for name, build in TABLES.items()}
    parts |= {f"note:{name}": note(result) for name, note in NOTES.items()}
    parts["figures"] = figures_table()
    for name, text in parts.items():
        page, count = re.subn(
            rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)",
            lambda m, t=text: f"{m[1]}{t}\n{m[2]}",
            page,
            flags=re.S,
        )
        assert count == 1, f"docs/paper.md has {count} places for {name}"
    return page


@pytest.fixture(scope="module")
def result() -> Table2:
    return reproduce()


def test_page_is_current(result: Table2) -> None:
    page = PAGE.read_text()
    wanted = renewed(page, result)
    hint = "run: python -m tests.experiments.research.paper.test_page"
    assert NUMBER.sub("#", page) == NUMBER.sub("#", wanted), hint
    for have, want in zip(NUMBER.findall(page), NUMBER.findall(wanted), strict=True):
        # Another processor may round a last digit the other way; anything more is another result.
        digits = len(want.partition(".")[2])
        assert abs(float(have) - float(want)) <= 1.5 * 10**-digits if digits else have == want, (
            f"{have}, {want}: {hint}"
        )


def test_pictures_of_the_page_exist() -> None:
    named = re.findall(r"\]\((paper/[^)]+)\)", PAGE.read_text())
    assert len(named) == 5
    for name in named:
        assert (PAGE.parent / name).stat().st_size > 1000


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(), reproduce()))
