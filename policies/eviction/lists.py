"""Doubly linked lists over expert keys, for policies that keep an order of their own. Every operation is O(1).

A list is two entries of `ends` (head, tail) at `2 * at`; `links` holds two entries per expert (prev, next) at
`2 * expert`. New experts enter at the head; `prev` leads there, `next` to the tail. -1 means none. An expert is in at
most one list. Declare them as::

    links = per_expert(np.int32, -1, width=2)
    ends = per_group(np.int32, -1, width=2)
"""

from policies.fields import Numbers


def push(links: Numbers[int], ends: Numbers[int], at: int, expert: int) -> None:
    """Put `expert` at the head of list `at`."""
    old = ends[2 * at]
    links[2 * expert] = -1
    links[2 * expert + 1] = old
    if old >= 0:
        links[2 * old] = expert
    else:
        ends[2 * at + 1] = expert
    ends[2 * at] = expert


def remove(links: Numbers[int], ends: Numbers[int], at: int, expert: int) -> None:
    """Take `expert` out of list `at`."""
    prev, next_ = links[2 * expert], links[2 * expert + 1]
    if prev >= 0:
        links[2 * prev + 1] = next_
    else:
        ends[2 * at] = next_
    if next_ >= 0:
        links[2 * next_] = prev
    else:
        ends[2 * at + 1] = prev


def prev(links: Numbers[int], expert: int) -> int:
    """The expert that is one nearer to the head, or -1."""
    return links[2 * expert]


def head(ends: Numbers[int], at: int) -> int:
    """The newest expert of list `at`, or -1."""
    return ends[2 * at]


def tail(ends: Numbers[int], at: int) -> int:
    """The oldest expert of list `at`, or -1."""
    return ends[2 * at + 1]


def last_idle(links: Numbers[int], ends: Numbers[int], at: int, seen: Numbers[int], now: int) -> int:
    """The expert nearest the tail of list `at` that the current visit does not demand, or -1."""
    expert = ends[2 * at + 1]
    while expert >= 0 and seen[expert] == now:
        expert = links[2 * expert]
    return expert
