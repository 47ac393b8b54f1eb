"""Several processes: what one contestant does to its process takes none of the others down."""

import os
import pickle
from contextlib import closing

import numpy as np
import pytest
import torch

from rsd.arena.fitting import Fitted, Fitting, fit_all, said_by
from tests.arena.test_contestants import MAKERS, A, T
from tests.arena.test_measure import SPACE
from tests.tokenizer.contract import random_chunks


class Deadly:
    """A contestant that takes its process with it."""

    num_stages = 1

    def fit(self, chunks, *, seed, max_steps):
        os._exit(7)


def job_of(name, contestant):
    fit, held = (random_chunks(40, T, seed=seed).numpy() for seed in (0, 1))
    episodes = {"3": 0.2 * np.ones((2 * T + 3, A), dtype=np.float32)}
    return Fitting("toy", name, pickle.dumps(contestant), SPACE, fit, held, episodes, seed=0, max_steps=3)


def test_one_process_is_this_one():
    (found,) = fit_all([job_of("bins", MAKERS["bins"]())], 1)
    job, fitted = found
    assert job.name == "bins" and fitted.steps == 0 and len(fitted.depths) == 1
    assert fitted.said["3"].shape == (1, 2 * T + 3, A)


@pytest.mark.parametrize("name", MAKERS)
def test_contestants_travel(name):
    if name == "rvq":
        pytest.importorskip("vector_quantize_pytorch")
    ((job, fitted),) = fit_all([job_of(name, MAKERS[name]())], 1)
    again = said_by(fitted.contestant(), job.episodes["3"], SPACE, T)
    assert np.array_equal(again, fitted.said["3"])


@pytest.mark.slow
def test_whoever_dies_or_raises_is_told_of_and_the_others_come_back():
    torch.set_num_threads(1)
    jobs = [job_of("deadly", Deadly()), job_of("nothing", None), job_of("bins", MAKERS["bins"]())]
    with closing(fit_all([*jobs, job_of("rfsq", MAKERS["rfsq"]())], 2)) as lines:
        found = {job.name: fitted for job, fitted in lines}
    assert found["deadly"] == "its process died (exit code 7)" and found["nothing"].startswith("AttributeError")
    assert isinstance(found["bins"], Fitted) and found["rfsq"].steps == 3
