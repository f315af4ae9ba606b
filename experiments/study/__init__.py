"""Studies: a grid of plans, traces and machines, replayed once, resumed at will, and concluded from."""

from experiments.study.finished_study import FinishedStudy, study
from experiments.study.run_study import run_study
from experiments.study.study_file import Study, load_study, study_from_dict
from experiments.study.workers import Threads

__all__ = ["FinishedStudy", "Study", "Threads", "load_study", "run_study", "study", "study_from_dict"]
