"""Which requests a predictor is fitted on and which it is tested on: the same text or routing never on both sides."""

from collections.abc import Sequence

from tracekit.requests import request_digests
from tracekit.trace import Trace


def split_requests(trace: Trace, held_out: Sequence[int]) -> tuple[list[int], list[int]]:
    """The numbers of the requests to fit on, and of those to test on, ascending.

    Those to test on are `held_out` and every other request that holds what one of them holds (`tracekit.requests`), or
    what one of these holds.
    """
    digests = request_digests(trace)
    tested = {request for request in held_out if request in digests}
    known = {digest for request in tested for digest in digests[request]}
    rest = [request for request in digests if request not in tested]
    while copies := [request for request in rest if known.intersection(digests[request])]:
        tested.update(copies)
        known.update(digest for request in copies for digest in digests[request])
        rest = [request for request in rest if request not in tested]
    return rest, sorted(tested)
