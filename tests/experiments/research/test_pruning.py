"""The table of pruned experts: the fewer are left, the further off is what the model says."""

import inspect
from pathlib import Path

import pytest

pytest.importorskip("torch")
from experiments.demo.reference_models import CHECKPOINTS, NAMES
from experiments.demo.stdlib_text import Document
from experiments.quality.measurement import load_measurement
from experiments.quality.text import read_documents
from experiments.research import pruning  # needs torch
from experiments.research.pruning import main
from policies.routing.cache_prior import CachePrior
from policies.routing.substitute import Substitute
from tracekit.durable import write_synced


def test_the_fewer_experts_are_left_the_further_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"train": (read_documents, write_synced), "held-out": (CachePrior, Substitute)}  # the library takes long
    made = {
        split: [Document(one.__name__, "code", inspect.getsource(one)) for one in own] for split, own in texts.items()
    }
    monkeypatch.setattr(pruning, "documents", made.__getitem__)
    arguments = [str(CHECKPOINTS / NAMES[0]), "--output", str(tmp_path), "--texts", "1", "--profile", "1"]
    assert main([*arguments, "--eighths", "7,4"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| mixtral-mini")]
    found = load_measurement(tmp_path / NAMES[0] / "quality")
    few, fewer = (plan.kl_divergence.value for plan in found.plans[:2])
    assert 0 < few < fewer
    assert [row[0].partition(": ")[2] for row in rows] == ["all", *(plan.name for plan in found.plans)]
    assert rows[2][1] == f"{found.plans[1].bits_per_byte:.4f}"
    assert main(["/nowhere", *arguments[1:]]) == 2
