"""Some inputs to every reader, in a process of its own: `python -m tests.helpers.fuzz_run FIRST LAST SEED FOLDER`.

A decoder may abort the process (`tracekit.decoding`): whoever started it reads how far it came, and goes on behind.
Prints the names of the readers, then a line for each input, and at the end by how many bytes resident memory grew.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from tests.helpers.fuzz_readers import all_readers
from tests.helpers.fuzzing import judged, mutated


def peak() -> int:
    """Most resident memory of this process so far, in bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    said = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(said[1]) << 10 if said else 0


def main(first: int, last: int, seed: int, folder: Path) -> None:
    (folder / "sound").mkdir(parents=True)
    readers = all_readers(folder / "sound")
    print(json.dumps([reader.name for reader in readers]), flush=True)
    for reader in readers:  # what is imported on first use is not what is measured
        assert judged(reader, reader.sample, folder / "in") == "read", reader.name
    before = peak()
    for number in range(first, last):
        reader = readers[number % len(readers)]
        try:
            print(judged(reader, mutated(reader, np.random.default_rng([seed, number])), folder / "in"), flush=True)
        except Exception as error:
            raise AssertionError(f"{reader.name}, seed {seed}, input {number}: {type(error).__name__}") from error
    print(peak() - before)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
