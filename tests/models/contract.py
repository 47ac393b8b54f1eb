"""What every base model must do; a test class inherits this and provides `base`.

class TestMyBase(BaseModelContract):
    @pytest.fixture(scope="class")
    @classmethod
    def base(cls): ...
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from rsd.points import HEAD, LAYER
from rsd.types import BaseModel, Observation, Pass
from tests.models.openvla_tiny import LONG, SHORT, observation, plain_observation


def everything(looked: Pass, points: Sequence[str]) -> dict[str, Tensor]:
    """States at the points, and the chunk."""
    return {point: looked.at(point) for point in points} | {"chunk": looked.chunk()}


class BaseModelContract:
    """Laziness, rows, books and the account of itself; observations are LIBERO's unless the subclass says otherwise.

    Attributes:
        close: Largest difference of states and chunks in batches of different sizes.
    """

    close = 1e-5

    @pytest.fixture(scope="class")
    @classmethod
    def base(cls) -> BaseModel:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def observations(cls) -> list[Observation]:
        """Four different ones that the model takes."""
        return [observation(seed, LONG if seed % 2 else SHORT) for seed in range(4)]

    @pytest.fixture(scope="class")
    @classmethod
    def grey(cls) -> list[Observation]:
        """A black one and a white one, equal in all else."""
        return [plain_observation(level) for level in (0, 255)]

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, base, observations) -> dict[str, Tensor]:
        """What the model says of the four, asked for everything in its order."""
        return everything(base.look(observations), list(base.spec.points))

    def test_the_spec_is_consistent(self, base):
        spec = base.spec
        assert spec.views and spec.space.name and spec.action_head and spec.points
        assert spec.proprio_dim is None or spec.proprio_dim > 0
        layers = [point for point in spec.points if point != HEAD]
        assert layers == [f"{LAYER}{number}" for number in range(1, len(layers) + 1)]
        num_tokens = spec.chunk_length * spec.action_dim  # K
        widths = {spec.points[layer] for layer in layers}
        assert len(widths) == 1 and next(iter(widths))[0] == num_tokens
        assert HEAD not in spec.points or spec.points[HEAD][0] == spec.chunk_length
        assert len(spec.space.action.mask) == spec.action_dim
        assert base.spec == spec

    def test_nothing_is_prepared_before_a_question(self, base, observations):
        looked = base.look([observations[0], "no observation"])
        assert len(looked) == 2 and int(looked.work.pictures_prepared.sum() + looked.work.base_layers.sum()) == 0
        looked.of(torch.tensor([0])).at(f"{LAYER}1")  # the other row is not even looked at
        assert looked.work.pictures_prepared.tolist() == [len(base.spec.views), 0]
        assert looked.work.base_layers[0] >= 1 and looked.work.base_layers[1] == 0

    def test_states_and_chunk_have_the_specs_shapes(self, base, expected):
        spec = base.spec
        for point, shape in spec.points.items():
            assert expected[point].shape == (4, *shape) and expected[point].isfinite().all(), point
        chunk = expected["chunk"]
        assert chunk.shape == (4, spec.chunk_length, spec.action_dim) and chunk.dtype == torch.float32
        assert chunk.isfinite().all() and not chunk.requires_grad

    @pytest.mark.parametrize("point", ["layer.0", "layer.999", "layer", "Head", "chunk"])
    def test_an_unknown_point_is_refused_and_costs_nothing(self, base, observations, point):
        looked = base.look(observations[:1])
        with pytest.raises(ValueError, match=rf"no point '{point}'; it has layer\.1"):
            looked.at(point)
        assert int(looked.work.pictures_prepared.sum()) == 0

    def test_what_is_prepared_before_is_looked_at_as_the_observations_are(self, base, observations, expected):
        looked = base.look(base.prepare(observations))
        assert len(looked) == 4
        for name, value in everything(looked, list(base.spec.points)).items():
            assert torch.equal(value, expected[name]), name
        assert looked.work.pictures_prepared.tolist() == [len(base.spec.views)] * 4

    def test_rows_do_not_know_of_each_other(self, base, observations, expected):
        for row, seen in enumerate(observations):
            for name, value in everything(base.look([seen]), list(base.spec.points)).items():
                torch.testing.assert_close(
                    value[0],
                    expected[name][row],
                    atol=self.close,
                    rtol=self.close,
                    msg=lambda said, name=name: f"{name}: {said}",
                )
        assert all(not torch.equal(expected["layer.1"][0], expected["layer.1"][row]) for row in (1, 2, 3))

    def test_states_do_not_depend_on_what_else_is_asked_for(self, base, observations, expected):
        for name in (f"{LAYER}1", "chunk"):
            looked = base.look(observations)
            value = looked.chunk() if name == "chunk" else looked.at(name)
            torch.testing.assert_close(
                value, expected[name], atol=self.close, rtol=self.close, msg=lambda said, name=name: f"{name}: {said}"
            )

    @pytest.mark.parametrize("begun", [False, True], ids=["untouched", "begun"])
    def test_some_rows_are_those_of_all_and_are_booked_in_their_account(self, base, observations, expected, begun):
        looked = base.look(observations)
        if begun:
            looked.at(f"{LAYER}1")
        before = looked.work.base_layers.tolist()
        some = looked.of(torch.tensor([1, 3]))
        assert len(some) == 2
        for name, value in everything(some, list(base.spec.points)[1:]).items():
            torch.testing.assert_close(
                value,
                expected[name][[1, 3]],
                atol=self.close,
                rtol=self.close,
                msg=lambda said, name=name: f"{name}: {said}",
            )
        layers = looked.work.base_layers.tolist()
        assert [layers[0], layers[2]] == [before[0], before[2]]
        assert layers[1] == layers[3] >= len([point for point in base.spec.points if point != HEAD])
        assert looked.work.vision_calls.tolist() == [int(begun), 1, int(begun), 1]
        last = some.of(torch.tensor([1]))  # a part of a part
        assert torch.equal(last.chunk(), some.chunk()[1:]) and looked.work.base_layers.tolist() == layers

    def test_asking_again_computes_nothing(self, base, observations):
        looked = base.look(observations[:2])
        for point in (*base.spec.points, "chunk"):
            values, accounts = [], []
            for _ in range(2):
                values.append(looked.chunk() if point == "chunk" else looked.at(point))
                accounts.append([looked.work.row(row) for row in range(2)])
            assert torch.equal(*values) and accounts[0] == accounts[1], point
        assert looked.work.pictures_prepared.tolist() == [len(base.spec.views)] * 2
        assert looked.work.vision_calls.tolist() == [1, 1]

    def test_black_and_white_pictures_differ(self, base, grey):
        looked = base.look(grey)
        for point in base.spec.points:
            assert (looked.at(point)[0] - looked.at(point)[1]).abs().max() > 1e-3, point
        if base.spec.continuous:  # tokens may round it away
            assert (looked.chunk()[0] - looked.chunk()[1]).abs().max() > 1e-3

    def test_the_fingerprint_is_json_and_stable(self, base, observations):
        before = json.dumps(base.spec.fingerprint, sort_keys=True)
        base.look(observations[:1]).chunk()
        assert json.dumps(dict(base.spec.identify()), sort_keys=True) == before
        assert json.loads(before).keys() == base.spec.fingerprint.keys() and base.spec.fingerprint

    def test_the_observations_are_left_alone(self, base, observations):
        copies = [{view: picture.copy() for view, picture in one.images.items()} for one in observations]
        base.look(observations).chunk()
        for one, copy in zip(observations, copies, strict=True):
            for view, picture in copy.items():
                np.testing.assert_array_equal(one.images[view], picture)
