"""What a command's training step really takes, by torch's own count of what its CPU allocator gives and gets back.

    python tests/support/real_memory.py BATCHES train-diffusion net=small ...     the peak of the last batch, in bytes

A process for each count: torch's count goes on from one to the next.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile, record_function

ROOT = Path(__file__).parents[2]
HERE = ("trainer.accelerator=cpu", "trainer.limit_val_batches=0")


def real_peak(command: str, *words: str, batches: int = 3) -> int:
    """Bytes at the worst moment of the last of a few batches, at the end of which all that a step keeps is there."""
    call = [sys.executable, __file__, str(batches), command, *words]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(call, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout.splitlines()[-1])


def measure(batches: int, command: str, words: list[str]) -> int:
    from support.tiny import run_command

    from ldm.training.progress import ProgressModule

    def marking(name, inner):
        def marked(module, *arguments):
            with record_function(f"{name} {module.batches_seen}"):
                pass
            return inner(module, *arguments)

        return marked

    with pytest.MonkeyPatch.context() as hooks:
        for name in ("on_train_batch_start", "on_train_batch_end"):
            hooks.setattr(ProgressModule, name, marking(name, getattr(ProgressModule, name)))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            run_command(command, *words, *HERE, f"steps={batches}", f"every={batches}")
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiled.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    at = {event["name"]: event["ts"] for event in events if event.get("ph") == "X"}
    start, end = (at[f"on_train_batch_{edge} {batches - 1}"] for edge in ("start", "end"))
    held = [event for event in events if event["name"] == "[memory]" and event["args"]["Device Type"] == 0]
    return max(event["args"]["Total Allocated"] for event in held if start <= event["ts"] <= end)


if __name__ == "__main__":
    print(measure(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
