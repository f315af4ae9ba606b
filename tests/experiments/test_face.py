"""`import tracekit as tk`: one table of names, real types, light to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tracekit as tk

ROOT = Path(__file__).resolve().parents[2]


def test_type_checkers_see_the_table() -> None:
    """Each name of the stub is imported from where the table says it lives, and there is no other."""
    stub = ast.parse((ROOT / "tracekit" / "__init__.pyi").read_text())
    seen = {}
    for node in stub.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            assert alias.name == alias.asname, "without `as` a stub exports nothing"
            seen[alias.name] = node.module
    assert seen == tk._HOME
    assert tk.__all__ == sorted(seen) == dir(tk)


@pytest.mark.parametrize("name", tk.__all__)
def test_every_name_is_there(name: str) -> None:
    if tk._HOME[name].startswith(("engine.runtime", "experiments.fit", "tracekit.recorder")):
        pytest.importorskip("torch")
    value = getattr(tk, name)
    assert getattr(value, "__module__", tk._HOME[name]) == tk._HOME[name]


def test_what_users_are_promised() -> None:
    promised = (
        "Trace Plan load_plan load_hardware replay curve study record offload offloaded EvictionPolicy Prefetcher"
    )
    assert {*promised.split(), "TracekitError", "__version__"} <= set(tk.__all__)
    with pytest.raises(AttributeError, match="no attribute 'replya'"):
        _ = tk.replya


def test_importing_it_is_light() -> None:
    heavy = {"polars", "numba", "torch", "numpy", "msgspec", "typer"}
    program = f"import sys, tracekit as tk; tk.TraceError; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).stdout == b"set()\n"
