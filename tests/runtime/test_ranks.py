"""What started this process, as its environment says."""

import pytest

from ldm.runtime.ranks import Launch, launch, rank

TORCHRUN = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"}
CASES = {
    "a process alone": ({}, Launch(""), 0),
    "torchrun": (TORCHRUN, Launch("torchrun", 3, 4, 1, 2), 3),
    "srun": (SRUN, Launch("srun", 3, 4, 1, 2), 3),
    "a rank that Lightning started": ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}, Launch(""), 1),
    "torchrun within a SLURM job of one task": (TORCHRUN | {"SLURM_NTASKS": "1"}, Launch("torchrun", 3, 4, 1, 2), 3),
}


@pytest.fixture
def environment(monkeypatch):
    for name in TORCHRUN.keys() | SRUN.keys():
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(name, value) for name, value in values.items()]


@pytest.mark.parametrize("case", CASES)
def test_the_environment_tells_who_started_it(case, environment):
    values, started, number = CASES[case]
    environment(values)
    assert (launch(), rank()) == (started, number)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"SLURM_STEP_ID": None}, "start the command by srun"), ({"SLURM_NTASKS": "3"}, "give each node equally many")],
)
def test_jobs_of_slurm_that_can_not_work_are_refused(changed, message, environment):
    environment({name: value for name, value in (SRUN | changed).items() if value is not None})
    with pytest.raises(ValueError, match=message):
        launch()
