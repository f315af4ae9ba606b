"""Domains that nobody named: clusters of requests whose tokens choose alike.

Hard expectation maximisation of a mixture of multinomials: each request goes to the cluster under whose shares its
choices are likeliest (`engine.decisions.domains.nearest`, which is how it will be told online), shares are counted
anew, until nothing moves. The first members are drawn as k-means++ draws them (Arthur & Vassilvitskii 2007, "k-means++:
The Advantages of Careful Seeding"), several times; the likeliest result stands.
"""

from itertools import pairwise

import numpy as np

from engine.decisions.domains import chosen_keys, log_shares
from tracekit.errors import PlanError
from tracekit.trace import Trace

STARTS, ROUNDS = 8, 100
NAME = "cluster-{}"


def clusters_of(trace: Trace, clusters: int, seed: int = 0) -> list[str]:
    """The label of each request by its number: `cluster-0`, which has most requests, and so on; "" for no request.

    The same for the same trace and seed. Raises PlanError for fewer requests than clusters.
    """
    numbers, counts = request_counts(trace)
    if not 2 <= clusters <= len(numbers):
        raise PlanError(f"{clusters} clusters of {len(numbers)} requests: give 2 or more, and no more than there are")
    rng = np.random.default_rng(seed)
    found = max((_cluster(counts, clusters, trace.num_experts, rng) for _ in range(STARTS)), key=lambda one: one[0])[1]
    sizes = np.bincount(found, minlength=clusters)
    first = np.array(
        [int(np.argmax(found == cluster)) if sizes[cluster] else len(found) for cluster in range(clusters)]
    )
    rank = np.empty(clusters, np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(clusters)
    labels = [""] * (int(numbers[-1]) + 1)
    for number, cluster in zip(numbers.tolist(), rank[found].tolist(), strict=True):
        labels[number] = NAME.format(cluster)
    return labels


def request_counts(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the requests, ascending, and how often each one's tokens chose each key: i64 [requests, keys]."""
    numbers, of_row = np.unique(trace.request, return_inverse=True)
    order = np.argsort(of_row, kind="stable")
    edges = np.searchsorted(of_row[order], np.arange(len(numbers) + 1))
    experts = trace.experts
    counts = [chosen_keys(experts[order[first:last]], trace.num_experts) for first, last in pairwise(edges.tolist())]
    return numbers, np.array(counts, np.int64)


def _cluster(counts: np.ndarray, clusters: int, experts: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
    """How likely one result is, in whole units, and the cluster of each request: [requests]."""
    members = _first_members(counts, clusters, experts, rng)
    of = np.argmax(counts @ log_shares(counts[members], experts).T, axis=1)
    for _ in range(ROUNDS):
        sums = np.stack([counts[of == cluster].sum(axis=0) for cluster in range(clusters)])
        likely = counts @ log_shares(sums, experts).T
        new = np.argmax(likely, axis=1)
        if (new == of).all():
            break
        of = new
    return int(likely.max(axis=1).sum()), of


def _first_members(counts: np.ndarray, clusters: int, experts: int, rng: np.random.Generator) -> list[int]:
    """Requests to begin clusters with, each drawn the likelier, the less likely it is under those before."""
    own = (counts * log_shares(counts, experts)).sum(axis=1)  # as likely as a request can be
    members = [int(rng.integers(len(counts)))]
    while len(members) < clusters:
        best = (counts @ log_shares(counts[members], experts).T).max(axis=1)
        far = np.maximum(own - best, 0).astype(np.float64)
        far[members] = 0
        left = np.setdiff1d(np.arange(len(counts)), members)
        members.append(int(rng.choice(len(counts), p=far / far.sum()) if far.sum() > 0 else left[0]))
    return members
