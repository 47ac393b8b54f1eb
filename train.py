"""Fit one phase: python train.py phase=rfsq|oft|head|draft. The groups are in conf/train.yaml."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.entry_point import finish_run, is_first_process, publish, report_errors, run
from rsd.runs import open_run


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@report_errors
def main(cfg: DictConfig) -> None:
    from pytorch_lightning import seed_everything
    from pytorch_lightning.callbacks import ModelCheckpoint

    from rsd.training.step_progress import StepProgress

    if "check" in cfg.phase:
        instantiate(cfg.phase.check)
    if is_first_process():
        run_dir = open_run(cfg, HydraConfig.get())
    else:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        sys.stdout = open(os.devnull, "w")  # it would print the same
    seed_everything(cfg.seed, verbose=False)
    datamodule = instantiate(cfg.phase.datamodule)
    module = instantiate(cfg.phase.module)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    state = run_dir / "resume" / "last.ckpt"
    resume_point = ModelCheckpoint(state.parent, save_last=True, save_top_k=0, every_n_train_steps=cfg.save_every)
    trainer = instantiate(cfg.trainer, logger=logger, callbacks=[resume_point, StepProgress()])
    config = OmegaConf.to_container(cfg, resolve=True)
    logger.log_hyperparams(config)
    try:
        trainer.fit(module, datamodule, ckpt_path=state if state.exists() else None)
    except SystemExit:  # what Lightning makes of Ctrl-C
        print(f"interrupted; continue with: python train.py resume={run_dir}", file=sys.stderr)
        sys.exit(130)
    trainer.validate(module, datamodule, verbose=False)
    if not is_first_process():
        return

    checkpoint = run_dir / "checkpoint"
    metrics = module.export(checkpoint, {"command": ["python", *sys.argv], "config": config})
    publish(checkpoint, Path(cfg.phase.checkpoint))
    logger.log_files(sorted(run_dir.glob("*.png")))
    logger.log_artifact(checkpoint, kind=cfg.phase.name)
    logger.finalize("success")
    finish_run(run_dir, f"phase={cfg.phase.name} → {cfg.phase.checkpoint}", metrics, shown=list(cfg.phase.shown))


if __name__ == "__main__":
    run(main)
