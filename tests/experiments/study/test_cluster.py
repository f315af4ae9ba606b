"""Dask: the same bytes as threads leave, whoever dies or joins meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.cli.main import run as cli
from experiments.study import Threads, load_study, run_study
from tests.helpers.studies import contents, traced
from tracekit.errors import StudyError

pytest.importorskip("distributed", reason="Dask is not installed: pip install 'moe-tracekit[cluster]'")

from experiments.study.cluster import Cluster

ROOT = Path(__file__).resolve().parents[3]
TOML = """
traces = "a.trace"
regret = 1
[grid]
capacity = ["2/layer", "4/layer", "50%"]
eviction = ["lru", "lfu", "fifo"]
prefetch = ["none", "popular"]
weights = "hqq-2bit"
hardware = ["rtx3060", "t4"]
model_shape = "mixtral-8x7b"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("cluster")
    traced(place / "a.trace", 1, tokens=90)
    (place / "study.toml").write_text(TOML)
    run_study(load_study(place / "study.toml"), place / "threads", Threads(2), source=TOML)
    return place


def test_no_scheduler_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.study.cluster.CONNECT_S", 0.3)
    with pytest.raises(StudyError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        run_study(load_study(folder / "study.toml"), tmp_path / "out", Cluster("tcp://127.0.0.1:9"))


def test_workers_that_do_not_start_are_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(workers: int) -> Any:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("experiments.study.cluster.local_cluster", failing)
    with pytest.raises(StudyError, match="workers do not start: Nanny failed to start"):
        run_study(load_study(folder / "study.toml"), tmp_path / "out", Cluster("local"))


def test_a_local_cluster_leaves_the_same_bytes(folder: Path, tmp_path: Path, capsys: Any) -> None:
    command = ["study", str(folder / "study.toml"), "--output", str(tmp_path / "out"), "--dask", "local"]
    assert cli([*command, "--workers", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 0
    assert contents(tmp_path / "out") == contents(folder / "threads")


def test_a_worker_of_another_version_is_refused(folder: Path) -> None:
    from experiments.study.cluster import at_worker

    with pytest.raises(StudyError, match="another version"):
        at_worker(lambda *_: pytest.fail("it worked"), "0" * 64, None)


def test_workers_die_and_join(folder: Path, tmp_path: Path) -> None:
    """One worker is killed at its first task and another joins: the study ends as if nothing had been."""
    scheduler_file = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(scheduler_file)]
    work = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(scheduler_file)]
    work += ["--nworkers", "1", "--nthreads", "1", "--no-dashboard", "--no-nanny", "--local-directory", str(tmp_path)]
    quiet: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen([*dask, "--port", "0", "--no-dashboard"], **quiet)]
    try:
        deadline = time.monotonic() + 60
        while not scheduler_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = json.loads(scheduler_file.read_text())["address"]
        victim = subprocess.Popen(work, **quiet)
        running.append(victim)

        class Unlucky(Cluster):
            """Kills a worker and starts another as soon as something has been computed."""

            def run(self, work_: Any, items: Any) -> Any:
                for found in super().run(work_, items):
                    if victim.poll() is None:
                        victim.send_signal(signal.SIGKILL)
                        running.append(subprocess.Popen(work, **quiet))
                    yield found

        run_study(load_study(folder / "study.toml"), tmp_path / "out", Unlucky(address), source=TOML)
        assert len(running) == 3 and victim.wait() == -signal.SIGKILL
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert contents(tmp_path / "out") == contents(folder / "threads")


def test_ctrl_c_is_one_line(folder: Path, tmp_path: Path) -> None:
    """A terminal interrupts the workers, too; they are silent, and gone afterwards."""
    command = [
        sys.executable,
        "-c",
        "from experiments.cli.main import main; main()",
        "study",
        str(folder / "study.toml"),
    ]
    codes = []
    for seconds in (0.5, 1.5):
        out = tmp_path / f"{seconds}"
        with subprocess.Popen(
            [*command, "--output", str(out), "--dask", "local"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as running:
            deadline = time.monotonic() + 60
            while not out.exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(seconds)
            os.killpg(running.pid, signal.SIGINT)
            _, said = running.communicate(timeout=60)
        codes.append(running.returncode)
        assert said.count("\n") == (1 if running.returncode else 0), said
    assert set(codes) <= {0, 130} and 130 in codes
