"""A user's policy file, compiled: at once after an edit, from disk in the next process, and honest when it fails.

Each test runs in processes of its own with a compile cache of its own.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from policies.compile_cache import cache_directory, whose_else

ROOT = Path(__file__).resolve().parents[2]

MINE = """
import numpy as np
from policies.eviction.base import EvictionPolicy
from policies.fields import per_expert
from rules import offset

class Mine(EvictionPolicy):
    born = per_expert(np.int64)

    def on_insert(self, expert, group, now, signal):
        self.born[expert] = now

    def rank(self, expert, group, now):
        return SIGN * self.born[expert] + offset(expert)

class Other(Mine):
    def rank(self, expert, group, now):
        return -SIGN * self.born[expert]

SIGN = {sign}
"""

# One layer, two slots, experts 0, 1, 2 in turn: the first in goes (sign 1), or the last (sign -1).
PRELUDE = """
import json, os, sys
import numpy as np
from pathlib import Path
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
from policies.compiled import compiled_decide

def evicted(name, compiled=True):
    global cache
    cache = ExpertCache(CacheSpec(1, 4, (2,), np.ones(4, np.int64), name), compiled=compiled)
    events = [cache.visit(0, [expert]) for expert in (0, 1, 2)]
    return events[2].expert[0].item()

def stats():
    run = compiled_decide(cache.eviction_class, cache.prefetch_class)
    return {"hits": sum(run.stats.cache_hits.values()), "misses": sum(run.stats.cache_misses.values())}
"""


def run(code: str, cache: Path) -> Any:
    """What `code`, run in a fresh process, prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        # Sources only: the helper module is edited faster than bytecode files can tell.
        env=os.environ
        | {"TRACEKIT_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(cache.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_policy_file_is_compiled_once_and_never_outlived(tmp_path: Path) -> None:
    policy, cache = tmp_path / "mine.py", tmp_path / "cache"
    rules = tmp_path / "rules.py"
    rules.write_text("def offset(expert):\n    return 0\n")
    policy.write_text(MINE.format(sign="+1"))
    name = f"{policy}:Mine"

    first = run(
        f"""
        path, name = Path({str(policy)!r}), {name!r}
        found = [evicted(name), stats(), evicted(name, compiled=False)]
        stamp = path.stat()
        path.write_text(path.read_text().replace("SIGN = +1", "SIGN = -1"))
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # neither size nor time give the edit away
        found += [evicted(name), stats(), evicted(name, compiled=False)]
        print(json.dumps(found))
        """,
        cache,
    )
    assert first == [0, {"hits": 0, "misses": 1}, 0, 1, {"hits": 0, "misses": 1}, 1]
    compiled = sorted(cache.rglob("*.nbc"))
    assert len(compiled) == 2

    second = run(f"print(json.dumps([evicted({name!r}), stats()]))", cache)
    assert second == [1, {"hits": 1, "misses": 0}]
    assert sorted(cache.rglob("*.nbc")) == compiled

    # Another class of the same file, with the same fields, is another policy even within one process.
    third = run(f"print(json.dumps([evicted({name!r}), evicted({str(policy)!r} + ':Other')]))", cache)
    assert third == [1, 0]

    # The policy file stays as it is; a function that it imports now makes expert 0 the less valuable.
    rules.write_text("def offset(expert):\n    return 9 * expert\n")
    assert run(f"print(json.dumps(evicted({name!r})))", cache) == 0


def test_code_that_was_loaded_before_an_edit_is_not_kept_as_the_edited(tmp_path: Path) -> None:
    """A process compiles what it has in memory, whatever stands in the file by then."""
    policy, cache = tmp_path / "mine.py", tmp_path / "cache"
    rules = tmp_path / "rules.py"
    before, after = (f"def offset(expert):\n    return {factor} * expert\n" for factor in (0, 9))
    rules.write_text(before)
    policy.write_text(MINE.format(sign="-1"))
    name = f"{policy}:Mine"
    late = run(
        f"""
        import rules
        Path({str(rules)!r}).write_text({after!r})
        print(json.dumps([evicted({name!r}), evicted({name!r}, compiled=False)]))
        """,
        cache,
    )
    assert late == [1, 1]
    assert run(f"print(json.dumps([evicted({name!r}), evicted({name!r}, compiled=False)]))", cache) == [0, 0]


def test_what_cannot_be_compiled_is_one_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        textwrap.dedent(
            """
            from policies.eviction.base import EvictionPolicy

            class Typed(EvictionPolicy):
                def rank(self, expert, group, now):
                    return self.last_use[expert] + "one"

            class Unknown(EvictionPolicy):
                def rank(self, expert, group, now):
                    return self.countt[expert]

            class Misnamed(EvictionPolicy):
                def rank(self, expert, group):
                    return 0
            """
        )
    )
    messages = run(
        f"""
        from tracekit.errors import PolicyError
        messages = []
        for name in ("Typed", "Unknown", "Misnamed"):
            try:
                evicted({str(bad)!r} + ":" + name)
            except PolicyError as error:
                messages.append(str(error))
        print(json.dumps(messages))
        """,
        tmp_path / "cache",
    )
    assert len(messages) == 3
    assert "def rank(self, expert, group, now)" in messages.pop()  # refused when it is loaded
    for message in messages:
        assert "bad.py" in message and "cannot be compiled" in message
        assert "\n" not in message and len(message) < 600


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_unusable_cache_directory_is_no_obstacle(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / name))
    found = cache_directory()
    assert found is not None
    (found / "probe").write_text("writable")


def test_compiled_code_is_kept_only_where_nobody_else_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba's index files are pickles: whoever can put one there runs code as us. Then nothing is read or kept."""
    from policies.compiled import compiled_decide
    from policies.prefetch.none import NoPrefetch
    from policies.registry import eviction_policy

    mine, shared = tmp_path / "mine", tmp_path / "shared"
    (shared / "compiled").mkdir(parents=True)
    mine.mkdir(mode=0o700)
    assert whose_else(mine) == ""
    (shared / "compiled").chmod(0o777)
    assert "others may write" in whose_else(shared / "compiled")
    (shared / "compiled").chmod(0o755)
    shared.chmod(0o777)  # another folder could be put in its place
    assert "others may write" in whose_else(shared / "compiled")

    monkeypatch.setenv("TRACEKIT_CACHE", str(shared))
    (tmp_path / "own.py").write_text((ROOT / "policies" / "eviction" / "fifo.py").read_text() + f"\n# {tmp_path}\n")
    with pytest.warns(UserWarning, match="compiled policies are not kept"):
        assert callable(compiled_decide(eviction_policy(f"{tmp_path}/own.py:Fifo"), NoPrefetch))
    assert list((shared / "compiled").iterdir()) == []


def test_threads_may_ask_for_the_same_policy_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread gets a whole kernel, and the same one, of a policy file that none has read before."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from policies.compiled import compiled_decide
    from policies.prefetch.none import NoPrefetch
    from policies.registry import eviction_policy

    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    source = (ROOT / "policies" / "eviction" / "fifo.py").read_text() + f"\n# {tmp_path}\n"
    (tmp_path / "mine.py").write_text(source)
    together = Barrier(8)

    def ask(_: int) -> object:
        together.wait()
        return compiled_decide(eviction_policy(f"{tmp_path}/mine.py:Fifo"), NoPrefetch)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(ask, range(8))))) == 1
