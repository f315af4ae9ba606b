"""What stands beside a study's verdicts, in words."""

from collections.abc import Sequence

import polars as pl

from experiments.study.contestants import Contestant, plan_of
from experiments.study.fitting import AUTO, became, is_auto
from experiments.study.grid import stored_name
from experiments.study.study_file import Study

MEND = "give grid.model_shape, or leave out max_device_bytes"


def plans(count: int) -> str:
    """So many plans."""
    return "1 plan" if count == 1 else f"{count:,} plans"


def amount(size: int) -> str:
    """Bytes in the unit that suits them."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def no_winner(real: Sequence[Contestant], room: int | None) -> str:
    """Why nobody won."""
    if not real or room is None:
        return "no winner: no plan was replayed on every trace"
    if all(one.device_bytes is None for one in real):
        return f"no winner: the sizes of experts are unknown, so whether a plan fits is, too; {MEND}"
    return f"no winner: no plan fits into {amount(room)}"


def left_out(sizes: Sequence[int | None], room: int | None) -> list[str]:
    """How many plans were no candidates, by the `sizes` of those that were not."""
    if room is None:
        return []
    unknown = sum(size is None for size in sizes)
    large = len(sizes) - unknown
    found = [f"{plans(large)} left out, too large for {amount(room)}"] if large else []
    return found + ([f"{plans(unknown)} left out, of unknown size: {MEND}"] if unknown else [])


def sized(rows: pl.DataFrame) -> list[str]:
    """What capacity `auto` became in one setting, by how weights are stored."""
    own = rows.filter((pl.col("capacity_given") == AUTO) & (pl.col("capacity") != AUTO))
    asked = own.select("plan_toml", "capacity").unique(maintain_order=True).iter_rows()
    text = became([(stored_name(plan_of(toml)), capacity) for toml, capacity in asked])
    return [text] if text else []


def notes(study: Study, fitting: Sequence[Contestant], comparisons: int) -> list[str]:
    """What to keep in mind when reading the verdicts."""
    found = []
    if alone := sum(one.costs is None for one in fitting):
        found.append(
            f"not compared request by request: {alone} of {plans(len(fitting))}, since sizes of experts are unknown or "
            "one pass counted all cache sizes; with hardware and sizes all are"
        )
    if len({one.stored for one in fitting}) > 1:
        found.append("weight formats differ in quality, too, of which a replay knows nothing")
    fitted = all(is_auto(plan) for plan in study.plans)
    if len({one.plan.cache.capacity for one in fitting}) > 1 and study.max_device_bytes is None and not fitted:
        found.append("a larger cache wins where it fits: max_device_bytes says what else the device has to hold")
    if comparisons:
        several = "1 comparison" if comparisons == 1 else f"{comparisons} comparisons"
        found.append(
            f"probabilities are corrected for {several} (Holm); the winner was chosen on the same requests that it is "
            "judged by: confirm it on other prompts (tracekit validate)"
        )
    return found
