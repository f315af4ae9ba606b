"""A plan's words for misses: where a missing expert is computed, and which of them the cache takes in."""

from typing import Annotated, Literal

import msgspec


class MissPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`miss`: where a missing expert is computed."""

    # `copy`: on the device, which it is copied to; `host`: where it lies, and if it is admitted it is copied into the
    # cache meanwhile, for later visits; `split`: of a visit's misses a share as by `copy`, the others by the host and
    # never admitted; `auto`: by the host where that is sooner, by the machine's profile and the number of its tokens
    where: Literal["copy", "host", "split", "auto"] = "copy"
    # for `split`: the share that is copied, those with the most tokens; None: by the profile's rates of both
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    def __post_init__(self) -> None:
        if self.share is not None and self.where != "split":
            raise ValueError('miss.share divides misses between copies and the host: give it with where = "split"')


class AdmissionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`admission`: which missing experts the cache takes in; a policy and, beside it, the policy's own parameters."""

    policy: str = "always"
    # how many missing experts may be taken in at a step; None: no limit
    per_step: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)] | None = None
    # whose these are: `global`, who comes first; `even`, each layer its whole-numbered share; None: global
    per_layer: Literal["even", "global"] | None = None
    parameters: dict[str, int | float | bool] = {}

    def __post_init__(self) -> None:
        if self.per_layer is not None and self.per_step is None:
            raise ValueError("admission.per_layer shares out admission.per_step: give both")

    @property
    def limited(self) -> bool:
        """Whether anything that is missing may be kept out though there is room."""
        return self.policy != "always" or self.per_step is not None
