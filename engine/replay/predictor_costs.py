"""No free predictions: what asking later gates, and a plan's fitted predictors, take of each visit."""

import numpy as np

from engine.decisions.evidence import artefacts_of
from engine.hardware import HardwareProfile
from engine.hardware.roofline import SECOND, ceil_ns
from engine.plan.plan import Plan
from engine.simulator.costs import Costs
from engine.simulator.fits import fitting
from policies.learned.artefact import Card
from policies.registry import prefetcher

FIELD = "overhead.per_prediction_ns"
WEIGHT_BYTES = 8
"""Predictors compute in float64."""


def with_predictors(costs: Costs, plan: Plan, machine: HardwareProfile) -> Costs:
    """The costs of a machine on which the plan's predictors run beside each visit, and gates of later layers are asked.

    A prediction begins when the gate's choice is read back, and nothing goes on until it is made. It takes a fixed time
    (overhead.per_prediction_ns), reads the weights of its layer, and multiplies each row by them: at the rates of the
    host's processor if the profile has them, else of the device. Raises PolicyError.
    """
    asked = len(costs.chunks) - plan.prefetch.distance
    if machine.overhead.per_lookahead_ns and asked > 0 and prefetcher(plan.prefetch.predictor).reads == "lookahead":
        fixed = np.zeros(len(costs.chunks), np.int64)
        fixed[:asked] = machine.overhead.per_lookahead_ns
        costs = costs._replace(predict_ns=costs.predict_ns + fixed)
    for artefact in artefacts_of(plan):
        card = artefact.card
        fixed = np.zeros(len(card.experts_per_layer), np.int64)
        fixed[: card.sources] = fitting(FIELD, visit_ns(card, machine))
        per_row = 0 if card.own_layer else fitting(FIELD, row_ps(card, machine))
        costs = costs._replace(
            predict_ns=costs.predict_ns + fixed,
            predict_token_ps=costs.predict_token_ps + per_row,
        )
    return costs


def visit_ns(card: Card, machine: HardwareProfile) -> int:
    """Of a visit, whatever the number of its rows."""
    rate = (machine.cpu or machine.device).memory_bandwidth_bytes_per_s
    size = WEIGHT_BYTES * card.parameters // card.sources
    return machine.overhead.per_prediction_ns + ceil_ns(size, rate) + row_ps(card, machine) // 1000


def row_ps(card: Card, machine: HardwareProfile) -> int:
    """Of each row, in picoseconds."""
    rate = (machine.cpu or machine.device).compute_flops_per_s
    return -(-card.operations_per_row * 1000 * SECOND // rate)
