"""What the study is made on: routing of the reference models, its requests in three parts that share none."""

import json
from dataclasses import dataclass
from pathlib import Path

from experiments.demo.reference_models import CHECKPOINTS
from experiments.demo.stdlib_text import prompts
from experiments.fit.fit_predictor import fit
from policies.learned.artefact import CARD, Card, load_artefact
from tracekit.edit import Selection, slice_trace
from tracekit.trace import Trace

REQUESTS, NEW_TOKENS = 300, 64
FITTED, TUNED = 200, 240
"""Requests 0 to 199 are fitted on, 200 to 239 choose how plans use what was fitted, the others judge."""
DISTANCES = (1, 2)


@dataclass(frozen=True, slots=True)
class Setting:
    """A model's routing, timed at a large model's sizes."""

    model: str
    shape: str
    capacity: str
    experts: str = "hqq-2bit"


SETTINGS = (
    Setting("mixtral-mini", "mixtral-8x7b", "4/layer"),
    Setting("qwen3-moe-mini", "qwen3-30b-a3b", "12/layer"),
)


@dataclass(frozen=True, slots=True)
class Parts:
    """The whole recording, and what tunes and what judges."""

    whole: Trace
    tune: Trace
    test: Trace


def parts_of(setting: Setting, folder: Path) -> Parts:
    """The parts of a model's recording; made where they are not there yet."""
    whole = folder / f"{setting.model}.trace"
    if not (whole / "manifest.json").exists() or not Trace.open(whole).manifest.complete:
        record_model(setting, folder, whole)
    trace = Trace.open(whole)
    found = []
    for name, requests in (("tune", f"{FITTED}:{TUNED}"), ("test", f"{TUNED}:{REQUESTS}")):
        path = folder / f"{setting.model}-{name}.trace"
        found.append(Trace.open(path) if path.exists() else slice_trace(trace, Selection(requests=requests), path))
    return Parts(trace, *found)


def record_model(setting: Setting, folder: Path, output: Path) -> None:
    """Record held-out text continued by sampling, with lookahead."""
    from tracekit.recorder.models import load_model
    from tracekit.recorder.options import RecordOptions
    from tracekit.recorder.prompts import read_prompts
    from tracekit.recorder.recorder import record

    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts(REQUESTS)))
    model, tokenizer = load_model(CHECKPOINTS / setting.model, "float32", "cpu")
    options = RecordOptions(max_new_tokens=NEW_TOKENS, lookahead=DISTANCES, do_sample=True, resume=output.exists())
    record(model, tokenizer, read_prompts(file), output, options)


def artefact_of(
    setting: Setting, parts: Parts, folder: Path, predictor: str, *, distance: int = 1, seed: int = 0, without: str = ""
) -> Path:
    """A predictor fitted on the first FITTED requests, `without` those of a domain; made where it is not there yet."""
    path = folder / f"{setting.model}-{predictor}-d{distance}-s{seed}{'-no-' + without if without else ''}"
    if not (path / CARD).exists():
        from experiments.fit.modules import PREDICTORS
        from experiments.fit.train import Training

        held_out = [number for number in range(REQUESTS) if number >= FITTED or domain_of(number) == without]
        options = Training(epochs=PREDICTORS[predictor].epochs, seed=seed)
        fit(predictor, parts.whole, path, held_out=held_out, distance=distance, options=options)
    return path


def domain_of(request: int) -> str:
    """The domain of a request's prompt: they come in turn."""
    from experiments.demo.stdlib_text import DOMAINS

    return DOMAINS[request % len(DOMAINS)]


def card_of(path: Path) -> Card:
    """What a fitted predictor says of itself."""
    text = json.loads((path / CARD).read_text())
    return load_artefact(path, text["purpose"]).card
