"""A job of a multirun as the command that would run it alone, in its own folder, and nothing left of it for the next.

Lightning starts the processes that train along with `sys.argv` and Hydra's `run.dir`. Of a multirun these are the
sweep's and a folder that nobody uses: each of them would begin the whole sweep anew, and train along with its first
job. And what it leaves in the environment says to the next job of the same process that somebody else starts those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from rsd.runs import config_options

OF_RANKS = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def as_one_command() -> Iterator[None]:
    """Inside of this the process looks as if its job had been typed by itself; nothing changes but in a multirun."""
    hydra_cfg = cast(DictConfig, HydraConfig.get())  # Hydra names the schema, and gives the config
    if hydra_cfg.mode != RunMode.MULTIRUN:
        yield
        return
    typed, ranks = list(sys.argv), {name: os.environ.get(name) for name in OF_RANKS}
    with read_write(hydra_cfg):
        hydra_cfg.run.dir = hydra_cfg.runtime.output_dir
    sys.argv[1:] = [*config_options(), *hydra_cfg.overrides.task]
    try:
        yield
    finally:
        sys.argv[:] = typed
        for name, value in ranks.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})
        distributed = sys.modules.get("torch.distributed")  # where nothing was trained, it is not waited for
        if distributed is not None and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()
