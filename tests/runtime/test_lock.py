"""One command at a time in a run folder; the dead give way to the living."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldm.runtime import lock
from ldm.runtime.files import atomic_write
from ldm.runtime.lock import Holder, held


def holder(**changes):
    return Holder.me("sample").model_copy(update=changes)


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lock(folder, seconds_ago=0.0, **changes):
    path = folder / ".lock"
    path.write_text(holder(**changes).model_dump_json())
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_a_second_command_is_told_who_is_there(tmp_path):
    with held(tmp_path, "train-diffusion"):
        code = "import sys; from pathlib import Path; from ldm.runtime.lock import held\n"
        code += "with held(Path(sys.argv[1]), 'sample'): pass"
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
        assert f"{tmp_path} is in use by ldm train-diffusion, process {os.getpid()} on " in done.stderr
        assert "wait for it, or choose another run=" in done.stderr
    with held(tmp_path, "sample"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_each_part_of_a_folder_has_a_lock_of_its_own(tmp_path):
    with (
        held(tmp_path, "cache-latents", "slice-0-of-2"),
        held(tmp_path, "cache-latents", "slice-1-of-2"),
        pytest.raises(ValueError, match="is in use"),
        held(tmp_path, "cache-latents", "slice-1-of-2"),
    ):
        pass


def test_what_a_killed_command_left_half_written_goes_and_all_else_stays(tmp_path):
    write_lock(tmp_path, pid=ended_process())
    (tmp_path / "checkpoints").mkdir()
    kept = [tmp_path / "samples.npz", tmp_path / "checkpoints" / "1.ckpt", tmp_path / ".hidden"]
    for path in kept:
        path.write_text("x")
        (path.parent / f".{path.name}.abcd1234.tmp").write_text("half")
    with held(tmp_path, "sample"):
        assert sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock") == sorted(kept)


def test_what_belongs_to_runs_below_stays(tmp_path):
    write_lock(tmp_path, pid=ended_process())
    (tmp_path / "point").mkdir()
    (tmp_path / "point" / "config.yaml").write_text("command: sample")
    being_written = tmp_path / "point" / ".samples.npz.abcd1234.tmp"
    being_written.write_text("half")
    with held(tmp_path, "summarize"):
        assert being_written.exists()


def test_a_half_written_file_has_the_name_that_is_removed(tmp_path):
    with atomic_write(tmp_path / "samples.npz"):
        (name,) = (path.name for path in tmp_path.iterdir())
    assert name.startswith(".samples.npz.")
    assert name.endswith(".tmp")


@pytest.mark.parametrize(
    ("changes", "seconds_ago", "gives_way"),
    [
        ({}, 0, False),
        ({"began": 1}, 0, True),  # another process of the same number
        ({"where": "elsewhere", "job": ""}, 0, False),
        ({"where": "elsewhere", "job": ""}, lock.SILENT + 1, True),
        ({"where": "elsewhere", "job": "7", "restarts": "0"}, 0, True),  # SLURM has started the job again
        ({"where": "elsewhere", "job": "7", "restarts": "1"}, 0, False),  # another step of the same start
        ({"where": "elsewhere", "job": "8", "restarts": "0"}, 0, False),
    ],
)
def test_who_gives_way(tmp_path, monkeypatch, changes, seconds_ago, gives_way):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    path = write_lock(tmp_path, seconds_ago, **changes)
    lives = threading.Timer(0.5, lambda: os.utime(path))  # which a holder on another host is given time for
    if not gives_way:
        lives.start()
    if gives_way:
        with held(tmp_path, "sample"):
            pass
    else:
        with pytest.raises(ValueError, match="is in use by ldm sample"), held(tmp_path, "sample"):
            pass


def test_a_holder_elsewhere_that_is_silent_for_long_gives_way(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "SILENT", 0.5)
    write_lock(tmp_path, where="elsewhere", job="")
    with held(tmp_path, "sample"):
        pass


def test_a_damaged_lock_is_named_and_does_not_last(tmp_path):
    path = tmp_path / ".lock"
    path.write_text("{")
    with (
        pytest.raises(ValueError, match=r"\.lock is damaged, not JSON.* remove it, if no command runs"),
        held(tmp_path, "sample"),
    ):
        pass
    os.utime(path, (1, 1))
    with held(tmp_path, "sample"):
        pass


def test_a_holder_is_seen_to_live(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with held(tmp_path, "sample"):
        os.utime(tmp_path / ".lock", (1, 1))
        while (tmp_path / ".lock").stat().st_mtime < 2:
            time.sleep(0.01)


def test_of_two_that_take_over_one_succeeds(tmp_path):
    """Each of eight at once holds it alone: none sees another's mark."""
    write_lock(tmp_path, pid=ended_process())
    code = """
import sys, time
from pathlib import Path
from ldm.runtime.lock import held
folder, mark = Path(sys.argv[1]), Path(sys.argv[2])
while True:
    try:
        with held(folder, "sample"):
            mark.touch(exist_ok=False)
            time.sleep(0.02)
            mark.unlink()
        break
    except ValueError as error:
        assert "is in use" in str(error), error
        time.sleep(0.005)
"""
    mark = tmp_path.parent / f"{tmp_path.name}-mark"
    running = [subprocess.Popen([sys.executable, "-c", code, tmp_path, mark]) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert list(Path(tmp_path).iterdir()) == []


def test_a_holder_that_was_taken_for_dead_leaves_its_successors_lock(tmp_path):
    with held(tmp_path, "sample"):
        successor = write_lock(tmp_path, pid=os.getppid()).read_text()
    assert (tmp_path / ".lock").read_text() == successor


def test_a_lock_that_was_taken_over_meanwhile_is_put_back(tmp_path, monkeypatch):
    """Between the look at a dead holder and the renaming of its file another command took over."""
    write_lock(tmp_path, pid=ended_process())
    right, alive = lock._silence, holder(pid=os.getppid(), began=0)

    def meanwhile(path, dead):
        path.unlink()
        path.write_text(alive.model_dump_json())
        return right(path, dead)

    monkeypatch.setattr(lock, "_silence", meanwhile)
    lock._take_over(tmp_path / ".lock", tmp_path, "")
    assert (tmp_path / ".lock").read_text() == alive.model_dump_json()
