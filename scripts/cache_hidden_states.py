"""Run the frozen base model over a data set once: python scripts/cache_hidden_states.py model=oft_tiny

Training of heads and drafts does the same on demand. An interrupted run is completed by the same command.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.record import write

CONFIG = Path(__file__).parents[1] / "conf" / "cache.yaml"


@hydra.main(version_base="1.3", config_path="../conf", config_name="cache")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.commands.mixtures import require_one
    from rsd.data.cache import GIGABYTE
    from rsd.inputs import INPUTS_FILE, MADE_FILE, contents
    from rsd.runs import METRICS_FILE

    require_one(cfg)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    started = time.monotonic()
    try:
        cache = instantiate(cfg.cache)()
    except KeyboardInterrupt:
        print("\ninterrupted; finished shards are kept: the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    seconds = time.monotonic() - started
    scorer = OmegaConf.select(cfg, "visual_tokens.checkpoint")
    reads = {"data": cfg.cache.dataset.dataset_dir, "base": cfg.model.backbone.checkpoint, "visual_tokens": scorer}
    write(run_dir / INPUTS_FILE, contents(reads))
    groups = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("data", "model", "visual_tokens")}
    logger.log_hyperparams({**groups, "chunk": cfg.chunk, "layers": list(cache.points)})
    metrics = {"frames": len(cache), "gigabytes": cache.num_bytes / GIGABYTE, "seconds": seconds}
    write(run_dir / METRICS_FILE, metrics)
    write(run_dir / MADE_FILE, {content["point"]: content for content in cache.contents()})
    logger.log_metrics(metrics)
    for content in cache.contents():
        logger.log_made(content)
    logger.close()
    print(
        f"{len(cache)} frames of {cache.num_episodes} episodes, {', '.join(cache.points)}, "
        f"{cache.num_bytes / GIGABYTE:.3f} GB, {seconds:.1f} s in all: {cache.directory}"
    )


if __name__ == "__main__":
    run(main, CONFIG)
