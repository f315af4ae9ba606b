"""What stands beside a study's verdicts, in words."""

from collections.abc import Sequence

import polars as pl

from experiments.study.contestants import Contest, Contestant, plan_of
from experiments.study.fitting import AUTO, became, is_auto
from experiments.study.grid import routing_name, stored_name, tiers_name
from experiments.study.study_file import Study

MOST_NAMED = 6
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


def no_winner(study: Study, contest: Contest) -> str:
    """Why nobody won."""
    real, room = contest.real, contest.room
    if contest.placed and study.quality_loss is not None:
        return f"no winner: of what fits no plan is known to lose at most {share(study.quality_loss)}"
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


def too_lossy(study: Study, contest: Contest) -> list[str]:
    """How many plans that fit were no candidates for what they lose of quality, or since that is not known."""
    if study.quality_loss is None:
        return []
    refused = [one for one in contest.placed if one not in contest.fitting]
    measured = [one for one in refused if one.loss is not None]
    unknown = [one for one in refused if one.loss is None]
    found = []
    if measured:
        losses = {stored_words(one): share(one.loss.value) for one in measured if one.loss is not None}
        each = ", ".join(f"{name} {loss}" for name, loss in list(losses.items())[:MOST_NAMED])
        found.append(f"{plans(len(measured))} left out, losing more than {share(study.quality_loss)}: {each}")
    if unknown:
        names = ", ".join(list(dict.fromkeys(map(stored_words, unknown)))[:MOST_NAMED])
        found.append(
            f"{plans(len(unknown))} left out, of which it is not known what they lose: {names}; measure them with "
            "tracekit quality, or leave out quality_loss"
        )
    return found


def of_quality(study: Study, fitting: Sequence[Contestant], winner: Contestant) -> list[str]:
    """What to keep in mind of what the plans cost in quality."""
    several = len({one.plan.weights for one in fitting}) > 1
    altering = any(one.plan.routing.alters for one in fitting)
    several |= any(one.plan.precision is not None for one in fitting)
    if study.quality is None:
        what = "weight formats and routing policies" if several and altering else "weight formats"
        what = what if several else "routing policies"
        return [f"{what} differ in quality, too, of which a replay knows nothing"] if several or altering else []
    found = [f"loss of quality is that of {study.quality.said}: of another model or text it is another"]
    unknown = [stored_words(one) for one in fitting if one.loss is None]
    if unknown:
        names = ", ".join(list(dict.fromkeys(unknown))[:MOST_NAMED])
        found.append(f"not known is what is lost by {names}: no such plan was measured")
    most, high = study.quality_loss, None if winner.loss is None else winner.loss.high
    if most is not None and winner.loss is not None and winner.loss.value:
        if high is None:
            found.append("too few documents were measured for an interval of the winner's loss")
        elif high > most:
            found.append(f"the winner may lose more than {share(most)}: the interval of its loss ends at {share(high)}")
    return found


def stored_words(one: Contestant) -> str:
    """What of a plan alters a model: how it stores weights, its precision tiers, its routing policy."""
    stored = stored_name(one.plan).removeprefix(", ") or "as stored"
    altering = [words for words in (tiers_name(one.plan), routing_name(one.plan)) if words]
    return ", ".join([stored, *altering]) + (f" at {one.plan.cache.capacity}" if altering else "")


def share(value: float) -> str:
    """A share of quality in percent, with three digits that count."""
    return f"{100 * value:.3g} %"


def notes(study: Study, fitting: Sequence[Contestant], comparisons: int) -> list[str]:
    """What to keep in mind when reading the verdicts."""
    found = []
    if alone := sum(one.costs is None for one in fitting):
        found.append(
            f"not compared request by request: {alone} of {plans(len(fitting))}, since sizes of experts are unknown or "
            "one pass counted all cache sizes; with hardware and sizes all are"
        )
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
