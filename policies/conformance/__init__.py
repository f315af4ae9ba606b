"""Does a policy keep the contract? `check("lru")` or `check("./mine.py:Mine")` tries it on small routings.

A policy is somebody's code, and compiled code checks no index: what a wrong policy would do to memory is found first in
interpreted runs, where every hook is watched, in a process that may hang or die without harm.
"""

from policies.conformance.process import check
from policies.conformance.report import Outcome, Report

__all__ = ["Outcome", "Report", "check"]
