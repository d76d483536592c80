"""Signals go to all processes of a job: the training process answers, and its data workers live until it ends them."""

import os
import signal
import subprocess
import sys

import pytest

from ldm.data.workers import loader

READS = """
import sys, time
import multiprocessing
from ldm.data.workers import loader
from ldm.runtime import stop


class Slow:
    def __len__(self):
        return 40

    def __getitem__(self, i):
        time.sleep(0.02)
        return i


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    stop.listen()
    with stop.interrupts_noted():
        seen = []
        batches = iter(loader(Slow(), 2, batch_size=1))
        for batch in batches:
            seen.append(int(batch))
            if len(seen) == 3:
                print("reading", flush=True)
            if stop.asked() and len(seen) >= 12:
                break
        del batches
        print("saved", len(seen) >= 12, stop.asked(), flush=True)
        stop.unlisten()
"""


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_lets_the_parent_read_on_and_save(tmp_path, start, signum):
    (tmp_path / "reads.py").write_text(READS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "reads.py", start],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "reading\n"
    os.killpg(process.pid, signum)
    said, errors = process.communicate(timeout=120)
    assert said.split() == ["saved", "True", str(int(signum))], errors
    assert process.returncode == 0


def test_a_long_folder_for_temporary_files_is_refused_before_workers_hang(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "x" * 120)
    with pytest.raises(ValueError, match=r"TMPDIR=/tmp/x+ is too long .* set a shorter one, or pass num_workers=0"):
        loader([], 2)
    loader([1], 0)


ENDS = """
import sys
from reads import Slow
from ldm.data.workers import loader


def read():
    batches = iter(loader(Slow(), 2, batch_size=1))
    next(batches)
    raise ValueError("of the training")


if __name__ == "__main__":
    import multiprocessing
    multiprocessing.set_start_method(sys.argv[1])
    try:
        read()
    except ValueError as error:  # whose traceback keeps the loader, and its workers, to the end of the process
        sys.exit(f"ldm: error: {error}")
"""


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_process_ends_though_its_workers_ignore_signals(tmp_path, start):
    """Python asks them by SIGTERM, and would wait for ever."""
    (tmp_path / "reads.py").write_text(READS)
    (tmp_path / "ends.py").write_text(ENDS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "ends.py", start], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (1, "ldm: error: of the training\n")


THREADS = """
import sys, threading
import multiprocessing
import torch
from ldm.data.workers import loader


def busy():
    while True:
        torch.zeros(64, 64).share_memory_()


class Threaded:
    def __len__(self):
        return 100

    def __getitem__(self, i):
        if i < 2:
            for _ in range(4):
                threading.Thread(target=busy, daemon=True).start()
        return i


if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    batches = iter(loader(Threaded(), 2, batch_size=1))
    next(batches)
    workers = batches._workers
    del batches
    print(*[worker.exitcode for worker in workers])
"""


@pytest.mark.parametrize("start", ["fork", "forkserver", "spawn"])
def test_a_worker_ends_while_its_threads_run_torchs_code(tmp_path, start):
    """As the one that sends the batches may; Python's finalization would abort the process."""
    (tmp_path / "threads.py").write_text(THREADS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "threads.py", start]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 0\n", "")
