"""Long tests: `make test` runs a quarter of their cases, another quarter at another commit; `make thorough` runs all.

`long.txt` names the functions of tests whose cases take more than two seconds together. It is written anew with

    pytest -n 2 --dist loadfile --junit-xml=all.xml && python -m tests.helpers.long all.xml
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree
from zlib import crc32

PARTS = 4
LEAST_S = 2.0
ROOT = Path(__file__).parents[2]
FILE = Path(__file__).with_name("long.txt")
ALWAYS = ("tests/test_fuzz.py", "tests/test_hostile.py")
"""What strangers may send is tried at every commit."""


def functions() -> frozenset[str]:
    """The functions of `long.txt`, as pytest names them."""
    return frozenset(FILE.read_text("utf-8").split())


def part_of(commit: str) -> int:
    """The part that is a commit's turn."""
    return int(commit[:8], 16) % PARTS


def commit() -> str:
    """The commit that is checked out; zeros where that is not known."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "0" * 40


def is_left_out(name: str, part: int, long: frozenset[str]) -> bool:
    """Whether the test, a case of one that is long, is of another part."""
    return name.partition("[")[0] in long and crc32(name.encode()) % PARTS != part


def slowest(results: Path) -> list[str]:
    """The functions of a run whose cases took more than `LEAST_S` together, from its JUnit file."""
    seconds: Counter[str] = Counter()
    for case in ElementTree.parse(results).iter("testcase"):
        file = case.attrib["classname"].replace(".", "/") + ".py"
        seconds[f"{file}::{case.attrib['name'].partition('[')[0]}"] += float(case.attrib["time"])
    return sorted(name for name, spent in seconds.items() if spent > LEAST_S and not name.startswith(ALWAYS))


if __name__ == "__main__":
    FILE.write_text("".join(f"{name}\n" for name in slowest(Path(sys.argv[1]))), "utf-8")
