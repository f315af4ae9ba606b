"""Whatever the bytes, a reader gives what it reads or one harmless line: no traceback, hang, or memory without end.

2,000 inputs by default; `make fuzz` asks for 100,000. The counts and the seed are printed: the same seed makes the same
inputs.
"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from engine.runtime.storage.slab_files import INDEX
from experiments.study.study_folder import SUMMARY  # some readers need torch
from policies.learned.artefact import CARD
from tests.helpers.commands import ROOT, harmless
from tests.helpers.fuzz_readers import all_readers
from tests.helpers.fuzzing import Reader, judged
from tracekit.manifest import MANIFEST_NAME

INPUTS = int(os.environ.get("TRACEKIT_FUZZ", "2000"))
SEED = int(os.environ.get("TRACEKIT_FUZZ_SEED", "18"))
MOST_GROWN = 400 << 20
"""Of resident memory, over all inputs: every sample is a few kilobytes."""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return all_readers(tmp_path_factory.mktemp("sound"))


def test_whatever_the_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    names: list[str] = []
    grown, first, aborted = 0, 0, 0
    while first < INPUTS:
        with (tmp_path / "out").open("w+") as out, (tmp_path / "err").open("w+") as err:
            words = [str(first), str(INPUTS), str(SEED), str(tmp_path / f"from-{first}")]
            done = subprocess.run(
                [sys.executable, "-m", "tests.helpers.fuzz_run", *words],
                cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out, stderr=err, check=False,
                timeout=300 + INPUTS,
            )  # fmt: skip
            out.seek(0)
            err.seek(0)
            told, said = out.read().splitlines(), err.read()
        names = json.loads(told[0])
        judged_so_far = [word for word in told[1:] if word in ("read", "refused")]
        if done.returncode:
            # One line that names the file, and the exit code of an error: the next process goes on behind it.
            assert done.returncode == 2 and re.fullmatch(r"error: .* is damaged: decoding it fails .*\n", said), said
            assert harmless(said)
            judged_so_far.append("refused")
            aborted += 1
        else:
            assert "panicked" not in said, said
            grown = max(grown, int(told[-1]))
        for number, outcome in enumerate(judged_so_far, first):
            outcomes[names[number % len(names)], outcome] += 1
        first += len(judged_so_far)
    with capsys.disabled():
        print(
            f"\nfuzz: {INPUTS} inputs, seed {SEED}; a decoder gave up {aborted} times; resident memory grew by", end=" "
        )
        print(f"{grown >> 20} MiB; read and refused:")
        print(", ".join(f"{name} {outcomes[name, 'read']} {outcomes[name, 'refused']}" for name in names))
    assert grown < MOST_GROWN
    assert sum(count for (_, outcome), count in outcomes.items() if outcome == "refused") > INPUTS // 4


DOCUMENTS = {
    "trace": MANIFEST_NAME,
    "predictor": CARD,
    "slabs": INDEX,
    "finished study": SUMMARY,
    "model": "config.json",
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=max(50, INPUTS // 10), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_the_values(
    readers: list[Reader], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """A value of any shape in any place of a JSON document, the digests being right."""
    reader = data.draw(st.sampled_from([reader for reader in readers if reader.name in DOCUMENTS]))
    document = DOCUMENTS[reader.name]
    value = json.loads(reader.sample[document])
    value[data.draw(st.sampled_from(sorted(value)))] = data.draw(VALUES)
    files = reader.mend(reader.sample | {document: json.dumps(value).encode()})
    judged(reader, files, tmp_path_factory.mktemp("values") / "in")
