"""Train a reference model: python -m experiments.research.reference_model.train --model mixtral-mini --output DIR

A run is determined by its recipe (steps and seed are part of it) and one thread: the batches are a pure
function of seed and step, and nothing else is random. Its state is saved every `--save-every` steps and the
same command continues from it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from experiments.demo.reference_models import NAMES
from experiments.demo.stdlib_text import digest, documents
from experiments.research.reference_model.architecture import build, configuration
from experiments.research.reference_model.batches import Streams, batch
from experiments.research.reference_model.tokenizer import CONTEXT, token_streams, train_tokenizer
from experiments.research.reference_model.training_state import Progress, load_state, save_state


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that a training run's weights depend on besides the text and the architecture."""

    steps: int
    seed: int = 0
    sequences: int = 8
    length: int = CONTEXT
    learning_rate: float = 3e-3
    warmup: int = 100
    decay_share: float = 0.3  # the learning rate is constant until the last 30 % of steps, then falls to zero
    weight_decay: float = 0.1
    clip: float = 1.0

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (from 0): warm-up, plateau, linear decay (arXiv 2405.18392).

        Until the decay it does not depend on `steps`, so an unfinished run may still be made longer or
        shorter.
        """
        decay = max(1.0, self.steps * self.decay_share)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, (self.steps - step) / decay)


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What one step measured: nats per token, and load balance (1 is even) averaged over layers."""

    nats: float
    balance: float


def train(
    model: PreTrainedModel,
    streams: Streams,
    recipe: Recipe,
    state: Path,
    save_every: int,
    *,
    report: Callable[[int, StepLoss], None] | None = None,
    stop_after: int | None = None,
) -> Progress:
    """Train `model` in place from where `state` left off (or from scratch) to the end of `recipe`.

    `state` is one safetensors file, replaced atomically every `save_every` steps; after a kill the same call
    goes on from it. `stop_after` ends early, after that step, with the state saved.

    Raises ValueError when `state` belongs to another seed.
    """
    optimizer = _optimizer(model, recipe)
    progress = load_state(state, model, optimizer, recipe.seed)
    started = time.monotonic() - progress.seconds
    model.train()
    last = min(recipe.steps, stop_after or recipe.steps)
    for step in range(progress.steps, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        windows = batch(streams, recipe.seed, step, recipe.sequences, recipe.length)
        loss = _step(model, windows, optimizer, recipe)
        done = step + 1
        progress = Progress(steps=done, seed=recipe.seed, seconds=time.monotonic() - started)
        if report:
            report(done, loss)
        if done % save_every == 0 or done == last:
            save_state(state, model, optimizer, progress)
    return progress


def _optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))


def _step(model: PreTrainedModel, windows: torch.Tensor, optimizer: torch.optim.Optimizer, recipe: Recipe) -> StepLoss:
    output = model(input_ids=windows[:, :-1], output_router_logits=True, use_cache=False)
    nats = cross_entropy(output.logits.flatten(0, 1), windows[:, 1:].flatten())
    balance = balance_loss(output.router_logits, model.config.num_experts, model.config.num_experts_per_tok)
    total = nats + model.config.router_aux_loss_coef * balance
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return StepLoss(nats.item(), balance.item() / len(output.router_logits))


def balance_loss(router_logits: tuple[torch.Tensor, ...], experts: int, top_k: int) -> torch.Tensor:
    """The Switch Transformer balance loss (arXiv 2101.03961, eq. 4), 1 per even layer, summed over layers.

    The models' own auxiliary loss pools the layers before it multiplies load and probability, which lets
    single layers collapse as long as the sum over layers looks even; here each layer has its own term.
    """
    layers = [load_balancing_loss_func((logits,), experts, top_k) for logits in router_logits]
    return torch.stack([torch.as_tensor(layer) for layer in layers]).sum() / top_k


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, choices=NAMES)
    parser.add_argument("--output", required=True, type=Path, help="checkpoint folder; state in DIR/state")
    parser.add_argument("--steps", type=int, default=2300, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    options = parser.parse_args(arguments)

    torch.set_num_threads(options.threads)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    text = documents("train")
    tokenizer = train_tokenizer(text)
    streams = token_streams(tokenizer, text)
    model = build(configuration(options.model), options.seed)
    state = options.output / "state" / "latest.safetensors"
    progress = train(model, streams, recipe, state, options.save_every, report=_Reporter(recipe))

    model.bfloat16().save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    facts = {
        "model": options.model,
        "steps": progress.steps,
        "seed": progress.seed,
        "tokens": progress.steps * recipe.sequences * recipe.length,
        "distinct_tokens": sum(len(stream) for stream in streams.values()),
        "seconds": round(progress.seconds),
        "threads": options.threads,
        "text_sha256": digest(text),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (options.output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    return 0


class _Reporter:
    """Progress lines on stderr: step, smoothed loss, balance, rate and remaining time."""

    def __init__(self, recipe: Recipe, every: int = 10) -> None:
        self.recipe, self.every = recipe, every
        self.smoothed = math.nan
        self.since, self.at_step = time.monotonic(), -1

    def __call__(self, step: int, loss: StepLoss) -> None:
        first = math.isnan(self.smoothed)
        self.smoothed = loss.nats if first else 0.95 * self.smoothed + 0.05 * loss.nats
        if first:
            self.since, self.at_step = time.monotonic(), step
        elif step % self.every == 0:
            seconds = (time.monotonic() - self.since) / (step - self.at_step)
            tokens = self.recipe.sequences * self.recipe.length / seconds
            left = (self.recipe.steps - step) * seconds / 60
            print(
                f"step {step}/{self.recipe.steps}  loss {self.smoothed:.3f}  balance {loss.balance:.3f}"
                f"  {tokens:.0f} tokens/s  {left:.1f} min left",
                file=sys.stderr,
                flush=True,
            )


if __name__ == "__main__":
    sys.exit(main())
