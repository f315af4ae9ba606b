"""The winners' plans, one for each setting, in one folder that can be copied to where they are to run."""

import re
import tomllib
from collections.abc import Sequence

import tomli_w

from engine.plan.carried import carried
from experiments.study import study_folder as files
from experiments.study.study_folder import StudyFolder
from experiments.study.study_json import SettingSummary

ENDING = ".plan.toml"


def write_winners(place: StudyFolder, settings: Sequence[SettingSummary]) -> None:
    """`winners/`: each setting's winner, and the policies of users that they name; `winner.plan.toml`: the first."""
    names, written = winner_names(settings), {}
    for name, setting in names.items():
        tables, policies = carried(tomllib.loads(setting.plan_toml or ""))
        written.update(policies)
        written[name] = _text(setting, tomli_w.dumps(tables))
    place.write_winners(written)
    if not names:
        place.remove(files.WINNER)
        return
    first = next(iter(names.values()))
    tables, _ = carried(tomllib.loads(first.plan_toml or ""), below=f"{files.WINNERS}/")
    place.write(files.WINNER, _text(first, tomli_w.dumps(tables)))


def winner_names(settings: Sequence[SettingSummary]) -> dict[str, SettingSummary]:
    """The file of each winner: named after the machine, and what else tells settings apart."""
    won = [setting for setting in settings if setting.plan_toml is not None]
    shapes, batches = ({getattr(one, key) for one in won} for key in ("model_shape", "batch"))
    found: dict[str, SettingSummary] = {}
    for setting in won:
        parts = [setting.hardware or "any-machine"]
        parts += [setting.model_shape or "own-shape"] if len(shapes) > 1 else []
        parts += [f"batch-{setting.batch or 'recorded'}"] if len(batches) > 1 else []
        stem = re.sub(r"[^A-Za-z0-9.+-]+", "-", "-".join(parts)).strip(".-") or "machine"
        number = 1
        while (name := stem + ("" if number == 1 else f"-{number}") + ENDING) in found:
            number += 1
        found[name] = setting
    return found


def _text(won: SettingSummary, plan: str) -> bytes:
    """The plan, and what it won."""
    return f"# {won.statement}\n# {won.conditions}\n{plan}".encode()
