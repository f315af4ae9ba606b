"""No prefetching."""

from policies.prefetch.base import Prefetcher


class NoPrefetch(Prefetcher):
    """Suggests nothing."""

    name = "none"
    summary = "no prefetching"
