"""An optimiser's state in a checkpoint is held to the parameters that it goes on with: a fused step reads blindly."""

import pytest
import torch

from ldm.training.progress import check_optimizer_state, check_optimizer_states


def optimizer_state(**changes):
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.grad = torch.ones(2, 3)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0] |= changes
    return optimizer, state


@pytest.mark.parametrize(
    "changes",
    [
        {"exp_avg": torch.zeros(2, 2)},
        {"exp_avg_sq": torch.zeros(6)},
        {"exp_avg": torch.full((2, 3), float("nan"))},
        {"step": torch.tensor(float("nan"))},
    ],
    ids=["shape", "flat", "nan", "step"],
)
def test_an_optimisers_state_is_of_its_parameters(changes):
    check_optimizer_state(*optimizer_state())
    with pytest.raises(ValueError, match="the checkpoint's optimiser state is not of these parameters"):
        check_optimizer_state(*optimizer_state(**changes))


@pytest.mark.parametrize(
    "state", [{}, {"state": {}, "param_groups": []}, {"state": {7: {}}, "param_groups": 3}], ids=str
)
def test_an_optimisers_state_is_whole(state):
    with pytest.raises(ValueError, match="optimiser state is not of these parameters"):
        check_optimizer_state(optimizer_state()[0], state)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_each_optimiser_has_its_state(count):
    optimizer, state = optimizer_state()
    check_optimizer_states([optimizer, optimizer], [state, state])
    with pytest.raises(ValueError, match=rf"has the state of {count} optimisers, this run has 2: .* run=NEW init="):
        check_optimizer_states([optimizer, optimizer], count * [state])
