"""Whether what was recorded of a family is what its model did, by computations that share nothing with the recorder.

Plain hooks keep what entered each router and left each layer while `record` ran. From these alone:

logits   the router's matrix times its input, in float64; where a router does more than project, its own output
choice   `formula`: top-k of softmax, sigmoid or sqrt-softplus scores, with a bias and group limits where the model has
         them, gives the recorded ids and, up to a factor by token, weights;
         `sum`: the recorded weights times each recorded expert's output, with the model's own expert weights, add up
         to what the experts returned; `rows`: each expert was handed the rows of those tokens that chose it

`python -m tests.tracekit.recorder.exactness` writes docs/families.md from it.
"""

import inspect
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from tests.tracekit.recorder.families import OVERRIDES, build, packages
from tracekit.errors import ModelError
from tracekit.recorder.layers import routed_layers
from tracekit.recorder.options import RecordOptions
from tracekit.recorder.prompts import Prompt
from tracekit.recorder.recorder import record
from tracekit.recorder.seam import MoeLayer
from tracekit.rows import UNUSED
from tracekit.trace import Trace

PROMPTS = [Prompt(id="a", prompt="5 6 7 8 20"), Prompt(id="b", prompt="9 10 3 7 41")]
TOLERANCE = 4e-3  # weights are recorded in half precision
DOCUMENT = Path(__file__).parents[3] / "docs" / "families.md"


class Numbers:
    """A tokenizer of texts that are numbers already."""

    eos_token_id = None

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


@dataclass
class Seen:
    """What plain hooks saw of one layer, pass after pass."""

    entered: list[torch.Tensor]  # the router, [tokens, hidden]
    routed: list[tuple[Any, ...]]  # out of the router
    handed: list[tuple[Any, ...]]  # to the experts
    returned: list[torch.Tensor]  # by the experts


@dataclass(frozen=True)
class Verdict:
    """A row of the document."""

    model: str
    layers: str
    read: str
    logits: str
    choice: str


def check(package: str, types: list[str]) -> Verdict:
    """Build, record and check one family. LookupError or ModelError where it cannot be; AssertionError where wrong."""
    model = build(package, types)
    layers = routed_layers(model)
    try:
        seen, trace = _recorded(model, layers, RecordOptions(max_new_tokens=3, batch_size=2, logits=True))
        mode = ""
    except ModelError as error:
        if "--score" not in str(error):
            raise
        seen, trace = _recorded(model, layers, RecordOptions(score=True, batch_size=2, logits=True))
        mode = ", with --score"
    logits, choices = set(), set()
    for layer in layers:
        rows = (trace.experts[:, layer.index] != UNUSED).any(-1) | (np.isfinite(trace.logits[:, layer.index]).any(-1))
        ids, weights = trace.experts[rows, layer.index], trace.weights[rows, layer.index]
        saw, recorded = seen[layer.index], trace.logits[rows, layer.index].astype(np.float64)
        entered = torch.cat(saw.entered)
        assert len(entered) == len(ids), f"{layer.name}: {len(entered)} tokens ran, {len(ids)} were recorded"
        logits.add(_logits(layer, entered, saw, recorded))
        found = _formula(layer, model, recorded, ids, weights)
        added = _added(layer, entered, saw, ids, weights)
        assert found or added, f"{layer.name}: nothing explains the recorded choice"
        choices |= {word for word in (found, added) if word}
    scores = {layer.score_function for layer in layers}
    where = {f"router, {layer.choice.form}" if layer.choice.where == "router" else "experts' call" for layer in layers}
    return Verdict(
        type(model).__name__,
        f"{len(layers)} of {trace.manifest.model_layers}" + (" in two stacks" if layers[-1].stack else ""),
        "; ".join(sorted(where)) + f"; {'/'.join(sorted(scores))}{mode}",
        "; ".join(sorted(logits)),
        "; ".join(sorted(choices)),
    )


def _recorded(model: PreTrainedModel, layers: list[MoeLayer], options: RecordOptions) -> tuple[dict[int, Seen], Trace]:
    seen = {layer.index: Seen([], [], [], []) for layer in layers}
    running: list[bool] = []  # what the recorder tries out beforehand is no pass of the model
    whole = [model, *([model.get_encoder()] if model.config.is_encoder_decoder else [])]
    handles = [module.register_forward_pre_hook(lambda *_: running.append(True)) for module in whole]
    handles += [module.register_forward_hook(lambda *_: running.clear()) for module in whole]

    def watch(layer: MoeLayer) -> None:
        saw = seen[layer.index]

        def router(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not running:
                return
            hidden = next(iter((*args, *kwargs.values())))
            saw.entered.append(hidden.reshape(-1, hidden.shape[-1]).clone())
            saw.routed.append(output if isinstance(output, tuple | list) else (output,))

        def experts(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not running:
                return
            saw.handed.append(tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in (*args, *kwargs.values())))
            saw.returned.append(output)

        handles.append(layer.router.register_forward_hook(router, with_kwargs=True))
        inner = layer.experts if layer.experts is not layer.block else _stacked(layer.block)
        handles.append(inner.register_forward_hook(experts, with_kwargs=True))

    for layer in layers:
        watch(layer)
    with tempfile.TemporaryDirectory() as folder:
        trace = Trace.open(record(model, Numbers(), PROMPTS, Path(folder) / "t.trace", options), verify=True)
        _ = trace.experts, trace.weights, trace.logits  # which outlive their files
        for handle in handles:
            handle.remove()
        return seen, trace


def _stacked(block: nn.Module) -> nn.Module:
    """The first child whose weights are stacked, one per expert."""
    return next(child for child in block.children() if any(p.dim() == 3 for p in child.parameters(recurse=False)))


def _logits(layer: MoeLayer, entered: torch.Tensor, saw: Seen, recorded: np.ndarray) -> str:
    matrices = [p for p in layer.router.parameters() if p.dim() == 2]
    bias = next((p for name, p in layer.router.named_parameters() if name == "bias"), None)
    if len(matrices) == 1 and matrices[0].shape[1] == entered.shape[1]:
        expected = functional.linear(entered.double(), matrices[0].double(), None if bias is None else bias.double())
        expected = expected[:, : layer.num_experts].detach().numpy()
        if np.allclose(recorded, expected, rtol=TOLERANCE, atol=TOLERANCE * np.abs(expected).max()):
            return "projection"
    for place in range(len(saw.routed[0])):
        items = [output[place] for output in saw.routed]
        if all(isinstance(item, torch.Tensor) and item.shape[-1] >= layer.num_experts for item in items):
            own = torch.cat([item.reshape(-1, item.shape[-1]) for item in items])[:, : layer.num_experts].half()
            own = own.double().detach().numpy()
            if own.shape == recorded.shape and np.array_equal(own, recorded):
                return "router's output"
            with np.errstate(divide="ignore"):
                if own.shape == recorded.shape and np.allclose(np.log(own), recorded, atol=TOLERANCE * 4):
                    return "log of the router's output"
    raise AssertionError(f"{layer.name}: the recorded logits are not its router's")


def _formula(
    layer: MoeLayer, model: PreTrainedModel, logits: np.ndarray, ids: np.ndarray, weights: np.ndarray
) -> str | None:
    """The first of the published formulas that gives the recorded ids and weights of every token."""
    values = torch.from_numpy(logits)
    scores = {
        "softmax": values.softmax(-1),
        "sigmoid": values.sigmoid(),
        "sqrt-softplus": functional.softplus(values).sqrt(),
    }
    held = [
        *layer.router.named_buffers(),
        *layer.router.named_parameters(),
        *layer.block.named_parameters(recurse=False),
    ]
    held += layer.block.named_buffers(recurse=False)
    biases = [
        b.double()[: layer.num_experts].detach() for n, b in held if "bias" in n and b.numel() >= layer.num_experts
    ]
    config = model.config.get_text_config() if not model.config.is_encoder_decoder else model.config
    holders = ((layer.router, "num_group"), (layer.router, "n_group"), (config, "n_group"))
    count = next((group for holder, name in holders if (group := getattr(holder, name, None))), 1)
    for name, score in scores.items():
        for bias in (None, *biases):
            biased = score if bias is None else score + bias
            for limited in ("", "two best", "best") if count > 1 else ("",):
                chosen = biased
                if limited:
                    parts = biased.view(len(biased), count, -1)
                    best = parts.topk(2, -1).values.sum(-1) if limited == "two best" else parts.amax(-1)
                    kept = best.topk(int(getattr(config, "topk_group", 1) or 1), -1).indices
                    mask = torch.zeros_like(best).scatter_(1, kept, 1).bool()
                    chosen = parts.masked_fill(~mask[:, :, None], float("-inf")).flatten(1)
                if _explains(chosen.numpy(), score.numpy(), ids, weights):
                    words = [
                        name,
                        *(["bias"] if bias is not None else []),
                        *([f"{limited} of a group"] if limited else []),
                    ]
                    return "formula (" + ", ".join(words) + ")"
    return None


def _explains(chosen: np.ndarray, score: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> bool:
    top_k = ids.shape[1]
    for token in range(len(ids)):
        order = np.argsort(-chosen[token], kind="stable")
        if len(order) > top_k and chosen[token][order[top_k - 1]] - chosen[token][order[top_k]] < 1e-3:
            continue  # too close to call from logits in half precision
        if set(order[:top_k].tolist()) != set(ids[token].tolist()):
            return False
        if top_k > 1:
            factors = weights[token].astype(np.float64) / np.maximum(score[token][ids[token]], 1e-12)
            if not np.allclose(factors, factors.max(), rtol=0.02):
                return False
    return True


def _added(layer: MoeLayer, entered: torch.Tensor, saw: Seen, ids: np.ndarray, weights: np.ndarray) -> str | None:
    """What the experts' own weights say."""
    experts = layer.experts
    chosen, factors = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(weights.astype(np.float32))
    used = chosen != UNUSED
    with torch.no_grad():
        if experts is layer.block:
            return _handed(layer, entered, saw, chosen)
        if isinstance(experts, nn.ModuleDict):
            inputs, outputs = entered, torch.cat(saw.returned)
            each = [child(inputs) for child in experts.children() if any(True for _ in child.parameters())]
        elif len(inspect.signature(experts.forward).parameters) >= 3:
            inputs = torch.cat([handed[0].flatten(0, -2) for handed in saw.handed])
            outputs = torch.cat([returned.flatten(0, -2) for returned in saw.returned])
            each = [_alone(experts, inputs, expert, layer.num_experts) for expert in range(layer.num_experts)]
        else:  # weighted before the experts: every expert is given every token, scaled
            count, tokens = layer.num_experts, len(entered)
            scaled = torch.zeros(tokens, count, 1).scatter_(1, chosen[..., None], factors[..., None])
            given = (entered[:, None] * scaled).transpose(0, 1).reshape(count * tokens, -1)
            total = experts(given).view(count, tokens, -1).sum(0)
            outputs = torch.cat([out.view(count, -1, total.shape[-1]).sum(0) for out in saw.returned])
            return "sum" if _close(total, outputs) else None
        stacked = torch.stack(each, 1)  # [tokens, experts, hidden]
        picked = stacked.gather(1, chosen.masked_fill(~used, 0)[..., None].expand(-1, -1, stacked.shape[-1]))
        total = (picked * (factors * used)[..., None]).sum(1)
        whole = used.all(-1) | (layer.gate.width <= layer.num_experts)  # else an expert without weights had a part
        return "sum" if whole.any() and _close(total[whole], outputs[whole]) else None


def _alone(experts: nn.Module, inputs: torch.Tensor, expert: int, count: int) -> torch.Tensor:
    """What one expert makes of every row; another goes along with weight 0, as some families want two or more."""
    ids = torch.tensor([[expert, (expert + 1) % count]]).expand(len(inputs), 2)
    return experts(inputs, ids, torch.tensor([[1.0, 0.0]]).expand(len(inputs), 2)).reshape(inputs.shape)


def _handed(layer: MoeLayer, entered: torch.Tensor, saw: Seen, chosen: torch.Tensor) -> str | None:
    """Whether each expert of a block was given the rows of the tokens that chose it, and no other."""
    start = 0
    for number, (inputs, sizes) in enumerate(saw.handed):
        tokens = len(saw.entered[number])
        rows, ids = saw.entered[number], chosen[start : start + tokens]
        expert_of = np.repeat(np.arange(len(sizes)), sizes)
        given = defaultdict(list)
        for row, expert in zip(inputs, expert_of, strict=True):
            given[int(expert)].append(row)
        for expert in range(layer.num_experts):
            wanted = rows[(ids == expert).any(-1)]
            if len(wanted) != len(given[expert]):
                return None
            if sorted(row.tolist() for row in given[expert]) != sorted(row.tolist() for row in wanted):
                return None
        start += tokens
    return "rows"


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    one, other = one.double(), other.reshape(one.shape).double()
    return bool(torch.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE * float(other.abs().max())))


def row(package: str, types: list[str]) -> tuple[bool, str]:
    """(recorded, the line of the document) for a family."""
    try:
        verdict = check(package, types)
    except (LookupError, ModelError) as error:
        return False, f"| {package} | {error} |"
    note = " (shrunk by hand)" if package in OVERRIDES else ""
    cells = (package + note, verdict.model, verdict.layers, verdict.read, verdict.logits, verdict.choice)
    return True, "| " + " | ".join(cells) + " |"


HEAD = f"""# Families that `tracekit record` records

Found in transformers {transformers.__version__}, by their configurations having fields about experts; each is built
tiny and random, recorded, and compared with computations that share nothing with the recorder. Written by
`python -m tests.tracekit.recorder.exactness`, which says what the columns mean; a test holds every line to it.

| family | model | layers that route | choice read from; scores | logits equal | choice explained by |
|---|---|---|---|---|---|
"""
REST = """
## Not recorded

| family | reason |
|---|---|
"""


def documented() -> dict[str, str]:
    """The line of each family in the document."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| ") and "|---" not in line]
    named = {line.split("|")[1].split("(")[0].strip(): line for line in lines}
    return {name: line for name, line in named.items() if name != "family"}


def main() -> None:
    """Write the document."""
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    lines = [row(package, types) for package, types in sorted(packages().items())]
    recorded, others = [line for ok, line in lines if ok], [line for ok, line in lines if not ok]
    end = f"\n{len(recorded)} of {len(lines)} families record exactly.\n"
    DOCUMENT.write_text(HEAD + "\n".join(recorded) + "\n" + end + REST + "\n".join(others) + "\n" + NOTES)
    print(DOCUMENT.read_text())


NOTES = """
## What to know

- `experts' call`: ids and weights are those that the model hands its experts. `router, ...`: they are read from what
  the router returns, in the form that `tracekit/recorder/choice.py` describes. Which it is, is found by running the
  router on a few random rows; no family is named in the recorder.
- Encoder-decoder models: the encoder's layers come first, then the decoder's, as they run. Reading the prompt is one
  step, in which the decoder's slots are unused; each token of the decoder, its start token included, is a step in
  which the encoder's are. `--score` records the encoder alone.
- JetMoE routes in its attention and in its feed-forward part; each counts as a layer, in the order in which they run.
- LongCat's router may choose to compute nothing. Such a choice loads nothing: the slot is unused, and the logits are
  those of the experts that hold weights. ZAYA's may too, but hands expert 0 with weight 0 to its experts: that is
  recorded.
- NLLB-MoE: `sum` does not hold, as transformers' NllbMoeExperts gives every token to experts 0 and 1, whatever was
  chosen. The gate's choice is recorded.
- Doge: an expert is one row of two tables, looked up by product keys inside the layer; no router or expert is called.
- VitPose: the caller chooses the expert, with the data set's number.
- DiffusionGemma: a pass reads a canvas, not a token.
- A model of several modalities is recorded on text.
"""

if __name__ == "__main__":
    main()
