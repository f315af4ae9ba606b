"""A validation of a study's winner, as `tracekit validate --json` printed it, for the study's report."""

from pathlib import Path

import msgspec

from experiments import report
from experiments.study.study_folder import VALIDATION
from experiments.validation.comparison import Validation
from experiments.validation.page import panel
from tracekit.errors import StudyError


def read_validation(study: Path, given: Path | None) -> report.Validation | None:
    """The validation in the file `given`, or in the study's folder if there is one. Raises StudyError."""
    path = study / VALIDATION if given is None else given
    if given is None and not path.exists():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Validation)
    except OSError as problem:
        raise StudyError(f"cannot read the validation {path}: {problem.strerror}") from None
    except msgspec.MsgspecError as problem:
        raise StudyError(f"{path} is not what tracekit validate --json prints: {problem}") from None
    return panel(found)
