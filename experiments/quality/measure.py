"""Measuring quality: a text through the unaltered model and through each plan, one model in memory at a time.

Documents are taken in groups. Of each group the unaltered model's logits are kept on disk (`.kept_logits`) until every
plan has been compared with them; what is finished of a document is on record at once (`.records`).
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import torch
import transformers

from engine.decisions.evidence import check_texts
from engine.plan.plan import Plan
from engine.runtime.memory import release
from experiments.quality.kept_logits import KeptLogits, groups
from experiments.quality.measurement import (
    RESULT,
    STORED,
    ByDocument,
    Documents,
    Measured,
    Measurement,
    Model,
    Text,
    Way,
    compared,
    predicted,
)
from experiments.quality.reading import read
from experiments.quality.records import Record, Records
from experiments.quality.scores import Score
from experiments.quality.text import Document, Tokens, encode
from experiments.quality.work import Options, Work
from tracekit.durable import reporting, write_synced
from tracekit.recorder.describe import identity
from tracekit.recorder.layers import family
from tracekit.recorder.models import load_tokenizer
from tracekit.recorder.seam import moe_layers
from tracekit.version import own_version

UNALTERED = "unaltered"
LOGITS = "logits"
Report = Callable[[int], object]


def measure(
    model: str | Path,
    documents: Sequence[Document],
    plans: Mapping[str, Plan],
    folder: Path,
    options: Options | None = None,
    *,
    counted_once: Sequence[tuple[str, str]] = (),
    progress: Callable[[int, int], object] = lambda done, total: None,
    say: Callable[[str], object] = lambda text: None,
) -> Measurement:
    """What each of `plans` (by name) costs on `documents`; written into `folder`, which a killed run goes on from.

    However often it was interrupted, the same measurement leaves the same bytes in quality.json.

    Args:
        model: a checkpoint: its directory, or its hub name in the local cache.
        counted_once: documents that were left out, and which has the same text.
        progress: called with the tokens that are done, those on record included, and how many there are.
        say: is called with a line where the checkpoint cannot be loaded shard by shard.

    Raises TracekitError; what can be checked before any weight is read is.
    """
    work = Work(model, plans, options or Options(), say)
    texts = encode(documents, load_tokenizer(work.directory))
    for plan in plans.values():
        check_texts({one.document.id: one.ids for one in texts}, plan)
    total, done = sum(one.count for one in texts) * (1 + len(plans)), 0

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    with Records(folder) as records, _scratch(folder / LOGITS) as place:
        for group in groups(texts, work.vocabulary, folder, work.options.scratch):
            _measure_group(work, group, records, place, report)
            for path in place.iterdir():
                path.unlink()
        result = _result(work, texts, records, list(counted_once))
        with reporting(folder / RESULT):
            write_synced(folder / RESULT, lambda file: file.write(result.to_json().encode()))
    return result


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, without what a killed run left in it; gone afterwards."""
    shutil.rmtree(folder, ignore_errors=True)
    with reporting(folder):
        folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure_group(work: Work, group: Sequence[Tokens], records: Records, place: Path, report: Report) -> None:
    """Whatever is not on record of a group of documents."""

    def missing(plan: Plan) -> list[Tokens]:
        left = [one for one in group if work.key(plan, one) not in records]
        report(sum(one.count for one in group) - sum(one.count for one in left))
        return left

    first = missing(work.unaltered)
    left = {name: missing(plan) for name, plan in work.plans.items()}
    compared_with = {one.document.digest for some in left.values() for one in some}
    kept = {digest: KeptLogits(place / digest) for digest in compared_with}
    again = [one for one in group if one in first or one.document.digest in kept]
    if again:
        _read_all(work, UNALTERED, work.unaltered, again, records, kept, lambda tokens: None)
        release()
    report(sum(one.count for one in first))
    for name, some in left.items():
        if some:
            _read_all(work, name, work.plans[name], some, records, kept, report)
            release()


def _read_all(
    work: Work,
    name: str,
    plan: Plan,
    documents: Sequence[Tokens],
    records: Records,
    kept: Mapping[str, KeptLogits],
    report: Report,
) -> None:
    """Documents through one model, each on record when it is done; the unaltered model's logits are kept."""
    with work.loaded(plan) as model:
        for one in documents:
            score, other = Score(), kept.get(one.document.digest)
            for logits, targets in read(model, one, work.window, work.chunk):
                if name == UNALTERED:
                    score.add(logits, targets)
                    if other is not None:
                        other.add(logits)
                else:
                    assert other is not None
                    score.add(logits, targets, other.next(logits))
                report(len(targets))
            if other is not None:
                other.rewind()
            records.add(
                Record(
                    key=work.key(plan, one),
                    document=one.document.id,
                    plan=name,
                    tokens=score.tokens,
                    nats=score.nats,
                    kl_nats=score.kl_nats,
                    agreed=score.agreed,
                )
            )


def _result(work: Work, texts: Sequence[Tokens], records: Records, counted_once: list[tuple[str, str]]) -> Measurement:
    """What all the records say."""
    documents = Documents(
        id=[one.document.id for one in texts],
        digest=[one.document.digest for one in texts],
        bytes=[len(one.document.data) for one in texts],
        tokens=[one.count for one in texts],
        nats=[records[work.key(work.unaltered, one)].nats for one in texts],
    )
    digest = hashlib.sha256("".join(sorted(documents.digest)).encode()).hexdigest()
    stored = str(getattr(work.config, "dtype", None) or work.dtype).removeprefix("torch.")
    return Measurement(
        kind="quality",
        model=Model(
            name=identity(work.empty)[0],
            digest=work.digest,
            family=family(work.empty),
            stored=STORED.get(stored, stored),
            dtype=str(work.dtype).removeprefix("torch."),
        ),
        text=Text(
            digest=digest,
            documents=len(texts),
            bytes=sum(documents.bytes),
            tokens=sum(documents.tokens),
            counted_once=counted_once,
        ),
        reading=Way(window=work.window, chunk=work.chunk, device=work.device),
        level=work.options.level,
        unaltered=predicted(documents, documents.nats),
        plans=[_measured(work, name, plan, texts, documents, records) for name, plan in work.plans.items()],
        documents=documents,
        provenance={
            "moe_tracekit": own_version(),
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
        },
    )


def _measured(
    work: Work, name: str, plan: Plan, texts: Sequence[Tokens], documents: Documents, records: Records
) -> Measured:
    of_plan = [records[work.key(plan, one)] for one in texts]
    by_document = ByDocument(
        nats=[one.nats for one in of_plan],
        kl_nats=[one.kl_nats for one in of_plan],
        agreed=[one.agreed for one in of_plan],
    )
    sizes, params = work.expert_bytes(plan), [layer.expert_params for layer in moe_layers(work.empty)]
    return Measured(
        name=name,
        plan=plan.to_dict(),
        weights=plan.weights,
        expert_bytes=max(sizes),
        bits_per_parameter=8 * sum(sizes) / sum(params),
        **msgspec.structs.asdict(predicted(documents, by_document.nats)),
        **msgspec.structs.asdict(compared(documents, by_document, work.options.level)),
        by_document=by_document,
    )
