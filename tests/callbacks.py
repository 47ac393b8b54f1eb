"""A Hydra callback that keeps what main returned, as a sweeper would take it."""

import json
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

RETURNED_FILE = "returned.json"
KEEP_RETURNED = "+hydra.callbacks.keep._target_=tests.callbacks.KeepReturned"


class KeepReturned(Callback):
    """Writes returned.json into the run folder."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        run_dir = Path(job_return.hydra_cfg.hydra.runtime.output_dir)
        (run_dir / RETURNED_FILE).write_text(json.dumps(job_return.return_value))
