"""Trying a policy in processes of their own: it may hang, crash, or write where it should not."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from policies import registry
from policies.conformance.report import FAIL, NOT_RUN, RULES, Outcome, Report
from policies.conformance.rules import BASES
from tracekit.errors import PolicyError

FRAME = re.compile(r'File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>\S+)')
FIRST = "mend the other rules first"


def check(name: str, *, seconds: float = 10.0) -> list[Report]:
    """Try the policy behind a name or `path.py:Class` by every rule; a name may stand for a policy of each kind.

    Args:
        seconds: how long a hook may take on one small routing before it counts as one that never returns.

    Raises:
        PolicyError: there is no such policy, or it cannot be loaded.
    """
    if ".py:" in name:
        return [_check("", name, seconds)]
    kinds = [kind for kind in registry.BUILTIN if name in registry.names(kind)]
    if not kinds:
        known = [name for kind in registry.BUILTIN for name in registry.names(kind)]
        raise registry.unknown("policy ", name, known)
    return [_check(kind, name, seconds) for kind in kinds]


def _check(kind: str, name: str, seconds: float) -> Report:
    report, ended = _run("interpreted", kind, name, seconds)
    kind = report.get("kind", "")
    if not kind:
        raise PolicyError(f"policy {name!r} cannot be loaded: {ended or 'it ends the process'}")
    found: dict[str, Outcome] = report["outcomes"]
    if ended:
        rule = "terminates" if "hung" in report else "runs"
        found[rule] = Outcome(rule, FAIL, f"{ended}; with {report['trying']}")
    elif "digest" in report:
        report, ended = _run("compiled", kind, name, seconds, report["digest"])
        found.update(report["outcomes"])
        if ended:
            found["compiled"] = Outcome("compiled", FAIL, f"{ended}; with {report['trying']}")
    missing = [rule for rule in RULES[kind] if rule not in found]
    found.update({rule: Outcome(rule, NOT_RUN, FIRST) for rule in missing})
    return Report(name, kind, tuple(found[rule] for rule in RULES[kind]))


def _run(stage: str, kind: str, name: str, seconds: float, digest: str = "") -> tuple[dict[str, Any], str]:
    """What the process reported, and how it ended if not well. Raises PolicyError if the policy cannot be used."""
    with tempfile.TemporaryDirectory(prefix="tracekit-check-") as folder:
        places = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
        done = subprocess.run(
            # -P: a folder named `policies` where the user stands must not be taken for this package.
            [sys.executable, "-P", "-m", "policies.conformance", stage, kind, name, str(seconds), folder, digest],
            env=os.environ | {"PYTHONPATH": places},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        log = Path(folder) / "log"
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        stuck_file = Path(folder) / "stuck"
        stuck = stuck_file.read_text(errors="replace") if stuck_file.exists() else ""
    report: dict[str, Any] = {"outcomes": {}}
    for line in lines:
        if "rule" in line:
            report["outcomes"][line["rule"]] = Outcome(line["rule"], line["status"], line["message"])
        else:
            report.update(line)
    if "error" in report:
        raise PolicyError(report["error"])
    if stuck:
        report["hung"] = True
        return report, _stuck(stuck)
    if done.returncode < 0:
        return report, f"the process died of signal {-done.returncode}"
    if "finished" not in report:
        last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with status {done.returncode}"]
        return report, last[0][:300]
    return report, ""


def _stuck(dump: str) -> str:
    """Which hook never returns, and where it was."""
    frames = [match.groupdict() for match in FRAME.finditer(dump)]
    frames = [frame for frame in frames if Path(frame["file"]).parent != Path(__file__).parent]
    if not frames:
        return "something never returns"
    called = {name for base in BASES.values() for name in registry.hooks(base)}
    hook = next((frame["function"] for frame in frames if frame["function"] in called), frames[0]["function"])
    return f"{hook}() never returns: it is still at {Path(frames[0]['file']).name}:{frames[0]['line']}"
