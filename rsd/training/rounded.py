"""Weights that are rounded once they are trained, so that the validation that follows measures what is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorch_lightning import LightningModule
from torch import nn

from rsd.checkpoint import round_weights


class Rounded(LightningModule):
    """A module whose exported weights are rounded to `weights_dtype`. A subclass sets it, and says what it exports."""

    weights_dtype: torch.dtype

    def exported(self) -> Sequence[nn.Module]:
        """The networks whose weights are exported."""
        raise NotImplementedError

    def on_fit_end(self) -> None:
        """Round. An interrupted training does not come here; one that is resumed after its last step does, and has
        no on_train_end. States to resume from are written before, and so are never rounded."""
        for network in self.exported():
            round_weights(network, self.weights_dtype)
