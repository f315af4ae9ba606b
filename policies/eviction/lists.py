"""Doubly linked lists over expert keys, for policies that keep an order of their own. Every operation is O(1).

A list is two entries of `ends` (newest, oldest) at `2 * at`; `links` holds two entries per expert (newer, older) at
`2 * expert`. -1 means none. An expert is in at most one list. Declare them as::

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=2)
"""

import numpy as np


def push(links: np.ndarray, ends: np.ndarray, at: int, expert: int) -> None:
    """Put `expert` at the newest end of list `at`."""
    newest = ends[2 * at]
    links[2 * expert] = -1
    links[2 * expert + 1] = newest
    if newest >= 0:
        links[2 * newest] = expert
    else:
        ends[2 * at + 1] = expert
    ends[2 * at] = expert


def remove(links: np.ndarray, ends: np.ndarray, at: int, expert: int) -> None:
    """Take `expert` out of list `at`."""
    newer, older = links[2 * expert], links[2 * expert + 1]
    if newer >= 0:
        links[2 * newer + 1] = older
    else:
        ends[2 * at] = older
    if older >= 0:
        links[2 * older] = newer
    else:
        ends[2 * at + 1] = newer


def newer(links: np.ndarray, expert: int) -> int:
    """The expert that is next newer, or -1."""
    return links[2 * expert]  # type: ignore[no-any-return]


def oldest(ends: np.ndarray, at: int) -> int:
    """The oldest expert of list `at`, or -1."""
    return ends[2 * at + 1]  # type: ignore[no-any-return]


def newest(ends: np.ndarray, at: int) -> int:
    """The newest expert of list `at`, or -1."""
    return ends[2 * at]  # type: ignore[no-any-return]


def oldest_idle(links: np.ndarray, ends: np.ndarray, at: int, seen: np.ndarray, now: int) -> int:
    """The oldest expert of list `at` that the current visit does not demand, or -1."""
    expert = ends[2 * at + 1]
    while expert >= 0 and seen[expert] == now:
        expert = links[2 * expert]
    return expert  # type: ignore[no-any-return]
