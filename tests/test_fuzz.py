"""Whatever the bytes, a reader gives what it reads or one harmless line: no traceback, hang, or memory without end.

2,000 inputs by default; `make fuzz` asks for 100,000. The counts and the seed are printed: the same seed makes the same
inputs.
"""

import json
import os
import resource
import shutil
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
from engine.runtime.storage.slab_files import INDEX
from experiments.study.study_folder import SUMMARY  # some readers need torch
from policies.learned.artefact import CARD
from tests.helpers.commands import harmless
from tests.helpers.fuzz_readers import all_readers
from tests.helpers.fuzzing import Files, Reader, mutated
from tracekit.errors import TracekitError
from tracekit.manifest import MANIFEST_NAME

INPUTS = int(os.environ.get("TRACEKIT_FUZZ", "2000"))
SEED = int(os.environ.get("TRACEKIT_FUZZ_SEED", "18"))
SLOWEST_S = 10.0
MOST_GROWN = 400 << 20
"""Of resident memory, over all inputs: every sample is a few kilobytes."""


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> list[Reader]:
    return all_readers(tmp_path_factory.mktemp("sound"))


def judged(reader: Reader, files: Files, folder: Path) -> str:
    """ "read" or "refused"; an assertion where it is neither."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as warned:  # the command line prints each in a line of its own
        try:
            reader.read(folder)
            outcome = "read"
        except TracekitError as error:
            said = str(error)
            assert said and "\n" not in said and harmless(said) and len(said) <= 1_000, said
            assert not warned, warned[0]
            outcome = "refused"
    assert time.monotonic() - begun < SLOWEST_S
    return outcome


def test_whatever_the_bytes(readers: list[Reader], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reader in readers:  # what is imported on first use is not what is measured
        assert judged(reader, reader.sample, tmp_path / "in") == "read", reader.name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    outcomes: Counter[tuple[str, str]] = Counter()
    for number in range(INPUTS):
        rng = np.random.default_rng([SEED, number])
        reader = readers[number % len(readers)]
        try:
            outcomes[reader.name, judged(reader, mutated(reader, rng), tmp_path / "in")] += 1
        except Exception as error:
            raise AssertionError(f"{reader.name}, seed {SEED}, input {number}: {type(error).__name__}") from error
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
    with capsys.disabled():
        print(f"\nfuzz: {INPUTS} inputs, seed {SEED}, resident memory grew by {grown >> 20} MiB; read and refused:")
        print(", ".join(f"{one.name} {outcomes[one.name, 'read']} {outcomes[one.name, 'refused']}" for one in readers))
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
