"""What the schema of a command takes, the command works with: two batches, with any values in their range."""

from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.tiny import CPU, TINY_DIFFUSION, inside, run_command

pytestmark = pytest.mark.slow
SHARES = st.sampled_from(["0", "1e-300", "0.5", "0.999", "1"])
VALUES = {
    "label_dropout": SHARES,
    "ema_decay": st.sampled_from(["0", "1e-300", "0.5", "0.999999"]),
    "guidance": st.sampled_from(["0", "1", "2.5", "1000"]),
    "guard.clip": st.sampled_from(["null", "1e-30", "1", "1e30"]),
    "guard.spike": st.sampled_from(["null", "1.0001", "1e30"]),
    "optimizer.lr": st.sampled_from(["1e-30", "1e-3", "1", "1e4"]),
    "optimizer.weight_decay": st.sampled_from(["0", "0.1", "10"]),
    "schedule.warmup": st.sampled_from(["0", "1", "1000000"]),
    "seed": st.sampled_from(["0", "4294967295", "18446744073709551616"]),
    "batch_size": st.sampled_from(["1", "3", "64"]),
    "num_workers": st.sampled_from(["0", "1"]),
    "every": st.sampled_from(["1", "2", "1000"]),
    "keep": st.sampled_from(["1", "1000000"]),
    "net.dropout": st.sampled_from(["0", "0.99"]),
    "lr_per_image": st.sampled_from(["null", "1e-9"]),
}
NUMBERS = count()  # of runs, each of its own
ONE_LINE = ("ldm: error: training diverged", "ldm: error: the model makes values that are not finite")


@settings(
    max_examples=6, phases=[Phase.generate], deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(chosen=st.fixed_dictionaries(VALUES))
def test_what_is_taken_works_for_two_batches_or_says_why_not(chosen, ldm, pipeline):
    inside(pipeline, ldm)
    if float(chosen["guidance"]) != 1 and float(chosen["label_dropout"]) == 0:
        chosen["guidance"] = "1"  # the schema says so
    words = [f"{key}={value}" for key, value in chosen.items()]
    try:
        run_command("train-diffusion", f"run=any-{next(NUMBERS)}", *TINY_DIFFUSION, *CPU, "steps=2", *words)
    except SystemExit as end:
        assert str(end.code).startswith(ONE_LINE), end.code
