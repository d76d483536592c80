"""What becomes of a SLURM job that was asked to stop, by a stand-in for scontrol; the real one is in test_slurm.py."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from ldm.runtime import stop

SCONTROL = """#!{python}
import json, os, signal, sys
from pathlib import Path

file = Path(os.environ["FAKE_JOB"])
job = json.loads(file.read_text())
if job["answer"] == "killed" and (sys.argv[1] == "requeue" or job["restarts"] > int(os.environ["SLURM_RESTART_COUNT"])):
    os.kill(os.getpid(), signal.SIGTERM)  # SLURM ends the job's processes, this one among them
if sys.argv[1] == "show":
    print("JobId=7 JobName=train Restarts=%d JobState=%s Reason=None" % (job["restarts"], job["state"]))
elif job["answer"] == "refused":
    sys.exit("Requested operation is presently disabled for job 7")
else:
    file.write_text(json.dumps(job | {{"restarts": job["restarts"] + 1, "state": "COMPLETING"}}))
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A function that makes this process one of a job in a given state."""
    (tmp_path / "scontrol").write_text(SCONTROL.format(python=sys.executable))
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_JOB", str(tmp_path / "job.json"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)

    def put(state="RUNNING", restarts=0, ours=0, answer="done") -> Path:
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(ours))
        card = {"state": state, "restarts": restarts, "answer": answer}
        (tmp_path / "job.json").write_text(json.dumps(card))
        return tmp_path / "job.json"

    return put


@pytest.mark.parametrize("answer", ["done", "killed"])
@pytest.mark.parametrize("restarts", [0, 3])
def test_a_requeue_is_told_from_the_jobs_restarts_though_slurm_ends_its_processes(job, answer, restarts):
    file = job(answer=answer, restarts=restarts, ours=restarts)
    assert stop.requeue(signal.SIGUSR1) == "job 7 is requeued"
    assert json.loads(file.read_text())["restarts"] == restarts + 1


@pytest.mark.parametrize("state", ["COMPLETING", "PENDING", "REQUEUED"])
def test_a_job_that_somebody_has_requeued_is_left_alone(job, state):
    file = job(state=state, restarts=1)
    assert stop.requeue(signal.SIGTERM) == "job 7 is requeued"
    assert json.loads(file.read_text())["restarts"] == 1


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", "TIMEOUT"])
def test_a_job_that_is_to_end_is_not_requeued(job, state):
    file = job(state=state, restarts=2, ours=2)
    said = f"job 7 is {state.lower()}: not requeued; the same command goes on from there"
    assert stop.requeue(signal.SIGTERM) == said
    assert json.loads(file.read_text())["restarts"] == 2


def test_why_a_job_could_not_be_requeued_is_said(job, monkeypatch):
    job(answer="refused")
    why = "Requested operation is presently disabled for job 7"
    assert stop.requeue(signal.SIGUSR1) == f"job 7 could not be requeued ({why}); the same command goes on from there"
    monkeypatch.setenv("PATH", "")
    assert "could not be requeued ([Errno 2]" in stop.requeue(signal.SIGUSR1)


def test_ctrl_c_requeues_nothing(job):
    file = job()
    assert stop.requeue(signal.SIGINT) == "the same command goes on from there"
    assert json.loads(file.read_text())["restarts"] == 0


def test_outside_a_job_there_is_nothing_to_requeue(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert stop.requeue(signal.SIGTERM) == "the same command goes on from there"
