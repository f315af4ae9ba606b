"""A policy that cannot be compiled is told its line and the mend; all that is listed as usable compiles."""

import re
from pathlib import Path

import numpy as np
import pytest

from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.may_use import MAY_USE
from tracekit.errors import PolicyError

HEAD = """import math

import numpy as np

import tracekit as tk


def helper(n):
    return n + 1


class Mine(tk.EvictionPolicy):
    \"\"\"A policy of a test.\"\"\"

    last = tk.per_expert(np.int64)
    score = tk.per_expert(np.float64)
    flag = tk.per_expert(np.bool_)

    def own(self, n):
        return n

    def rank(self, expert, group, now):
        n = self.last[expert]
"""
LINES = HEAD.count("\n")
"""Of the file before what a test adds to `rank`."""
STATEMENTS = """
if n > 2:
    n -= 1
elif n < -5:
    raise ValueError("negative")
else:
    n += 1
match n:
    case 1:
        n = 2
    case _:
        n = 3
while n > 0:
    n -= 1
    if n == 1:
        break
    continue
else:
    n = 0
for i in range(3):
    n += i
for i, value in enumerate(self.last):
    n += i * value
for a, b in zip(self.last, self.score):
    n += a * int(b)
a, b = n, 2
self.last[:2] = 0
def inner(x):
    return x + b
twice = lambda x: 2 * x
assert n < 10**9
n = helper(inner(twice(n)))
"""


def decide(folder: Path, body: str) -> None:
    """Compile a policy whose rank does this, and let it decide."""
    text = HEAD + "".join(f"        {line}\n" for line in body.splitlines()) + "        return n\n"
    (folder / "mine.py").write_text(text)
    cache = ExpertCache(CacheSpec(1, 4, (2,), np.ones(4, np.int64), f"{folder}/mine.py:Mine"))
    for expert in (0, 1, 2):
        cache.visit(0, [expert])


def test_all_that_is_listed_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    listed = [line for lines in MAY_USE.values() for line in lines]
    decide(tmp_path, "\n".join(f"x{number} = {line}" for number, line in enumerate(listed)) + STATEMENTS)


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("n = np.sort(self.last)[0]", 1, "np.sort is not supported: a compiled policy makes no arrays"),
        ("n = np.log(1.0 + n) + np.median(self.score)", 1, "np.median is not supported"),
        ("seen = {}\nseen[expert] = 1", 1, "a dict is not supported: what lasts belongs in declared arrays"),
        ("n = [i for i in range(3)][0]", 1, "a list is not supported"),
        ('n = len(f"{expert}")', 1, "a formatted text is not supported"),
        ("\nn = self.own(n)", 2, "self.own, a method, is not supported: helpers are functions of the module"),
        ("n = self.never[expert]", 1, "self.never, which the class does not declare, is not supported"),
        ("n = undefined(n)", 1, "undefined, which the file does not define, is not supported: define or import it"),
        ("n = (self.last + 1)[0]", 1, "arithmetic on whole arrays"),
        ("n = self.last.copy()[0]", 1, "self.last.copy is not supported"),
    ],
)
def test_the_line_and_the_mend_are_named(
    body: str, line: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PolicyError) as caught:
        decide(tmp_path, body)
    message = str(caught.value)
    assert "\n" not in message and f"mine.py, line {LINES + line}: {said}" in message, message
    assert message.endswith("docs/policies.md lists what may be used")
    assert re.search(r"policy '[^']+:Mine' with 'none' cannot be compiled: ", message)


def test_what_is_no_number_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(PolicyError, match="what a hook returns has to be a number"):
        decide(tmp_path, 'return "a"')


def test_a_file_without_its_class_is_told_which_there_are(tmp_path: Path) -> None:
    from policies.conformance import check
    from policies.registry import eviction_policy

    file = tmp_path / "two.py"
    file.write_text("class One(Base):\n    pass\n\n\nclass Two(Base):\n    pass\n\n\nclass Plain:\n    pass\n")
    for find in (check, eviction_policy):
        with pytest.raises(PolicyError, match=rf"say which class of it is the policy, {file}:One or {file}:Two$"):
            find(str(file))
        with pytest.raises(PolicyError, match="No such file"):
            find(str(tmp_path / "none.py"))
    file.write_text("x = 1\n")
    with pytest.raises(PolicyError, match="there is no class in it"):
        check(str(file))
    file.write_text("class (\n")
    with pytest.raises(PolicyError, match=r"policy file .*two\.py: invalid syntax"):
        check(str(file))
