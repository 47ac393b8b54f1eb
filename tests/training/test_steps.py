"""Learning rates over few steps, by hand, and trainings of no step at all."""

import pytest
import torch

from rsd.training.steps import one_cycle


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 20, 100])
def test_any_number_of_steps_has_a_learning_rate_for_each(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = one_cycle(optimizer, 1.0, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= 1 for rate in rates)


def test_ten_steps_are_the_only_ones_that_are_not_lightnings_own():
    """pct_start 0.1 of ten steps ends the rise at the first of them."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(ZeroDivisionError):
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.1)
    for steps in (11, 100):
        own = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=0.1)
        assert one_cycle(optimizer, 1.0, steps)._schedule_phases == own._schedule_phases
