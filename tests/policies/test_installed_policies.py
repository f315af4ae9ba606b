"""Policies of installed packages: compiled with their helpers, and never outlived by their code after an upgrade."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PLUG = """
from policies.eviction.base import EvictionPolicy
from plug.worth import worth
class Plug(EvictionPolicy):
    def rank(self, expert, group, now):
        return worth(expert)
"""
RUN = """
import json
import numpy as np
from policies.cache import ExpertCache
from policies.cache_spec import CacheSpec
found = []
for compiled in (False, True):
    cache = ExpertCache(CacheSpec(1, 4, (2,), np.ones(4, np.int64), "plug"), compiled=compiled)
    found.append([cache.visit(0, [expert]) for expert in (0, 1, 2)][2].expert[0].item())
print(json.dumps(found))
"""


def test_an_upgraded_package_is_compiled_anew(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    (site / "plug").mkdir(parents=True)
    (site / "plug-1.dist-info").mkdir()
    (site / "plug-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1\n")
    (site / "plug-1.dist-info" / "entry_points.txt").write_text("[tracekit.eviction]\nplug = plug:Plug\n")
    (site / "plug" / "__init__.py").write_text(PLUG)
    environment = os.environ | {
        "TRACEKIT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{site}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for sign, evicted in ((1, 0), (-1, 1)):
        (site / "plug" / "worth.py").write_text(f"def worth(expert):\n    return {sign} * expert\n")
        done = subprocess.run([sys.executable, "-c", RUN], env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout) == [evicted, evicted]
