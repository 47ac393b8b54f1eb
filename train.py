"""Fit one phase: python train.py phase=rfsq|oft|head|draft; python train.py --help prints all choices."""

from rsd import interrupts

if __name__ == "__main__":
    interrupts.at_once()  # the other imports take seconds

import sys
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.commands.metrics import finish_run
from rsd.commands.requeued import interrupted
from rsd.commands.requirements import require_parts
from rsd.commands.run_folder import begin_run
from rsd.commands.run_publishing import publish_run, published_names
from rsd.commands.trainer import make_trainer, require_devices
from rsd.commands.use_command import use_command
from rsd.processes import is_first_process
from rsd.runs import resume_command

CONFIG = Path(__file__).parent / "conf" / "train.yaml"


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@report_errors
def main(cfg: DictConfig) -> float | None:
    """Returns the first of phase.shown, of the last stage where it has a value a stage: what a sweeper optimises."""
    from pytorch_lightning import seed_everything
    from pytorch_lightning.callbacks import ModelCheckpoint

    from rsd.commands.mixtures import make_datamodule, members_alone, reads_of
    from rsd.data.cache import caches_of
    from rsd.inputs import content_of
    from rsd.training.divergence import StopWhenDiverged
    from rsd.training.end_when_asked import EndWhenAsked, started_here
    from rsd.training.ranks import SameRanks, lost_rank
    from rsd.training.sharded import gather, require_shardable
    from rsd.training.states import LAST, States, state_to_resume
    from rsd.training.step_progress import StepProgress
    from rsd.training.steps import RequireSteps, require_whole
    from rsd.training.throughput import Throughput
    from rsd.training.trials import repeat_first

    interrupts.in_order()
    require_devices(cfg)
    instantiate(cfg.phase.get("check"))
    require_parts(cfg.phase)
    names = published_names(cfg)
    trial = cfg.get("debug")  # of which nothing is published
    members = members_alone(cfg)
    run_dir = begin_run(cfg, reads=reads_of(cfg, members))
    state = state_to_resume(run_dir / "resume")
    seed_everything(cfg.seed, verbose=False)
    datamodule = make_datamodule(cfg, members)
    if trial and trial.batches is not None:
        repeat_first(datamodule, trial.batches)
    module = instantiate(cfg.phase.module)
    logger = instantiate(cfg.logger)(run_dir=run_dir)
    resume_point = ModelCheckpoint(
        run_dir / "resume",
        save_last=True,
        save_top_k=0,
        every_n_train_steps=cfg.save_every,
        enable_version_counter=False,  # always the same name, in a folder that was moved, too
    )
    ending = EndWhenAsked(run_dir / "resume" / LAST)
    callbacks = [StopWhenDiverged(), resume_point, StepProgress(), Throughput(), SameRanks(), ending]
    callbacks += [] if trial else [RequireSteps()]
    trainer = make_trainer(cfg, logger=logger, callbacks=callbacks, plugins=[States(), *started_here()])
    if not trial:
        require_whole(trainer)
    require_shardable(trainer, module)
    config = OmegaConf.to_container(cfg, resolve=True)
    logger.log_hyperparams(config)
    try:
        trainer.fit(module, datamodule, ckpt_path=state, weights_only=True)
        trainer.validate(module, datamodule, verbose=False)
        gather(trainer, module)
    except SystemExit:  # what Lightning makes of Ctrl-C
        interrupted(run_dir, what="step", done=trainer.global_step, before=ending.begun)
    except RuntimeError as error:
        lost = lost_rank(trainer, error, go_on=resume_command(run_dir))
        if lost is None:
            raise
        raise lost from error
    if not is_first_process():
        return None

    metrics = module.export(run_dir / "checkpoint", {"command": ["python", *sys.argv], "config": config})
    made = {run_dir / part / "checkpoint": name for part, name in names.items()}
    found_at = [*made] if trial else [publish_run(checkpoint, name) for checkpoint, name in made.items()]
    logger.log_files(sorted(run_dir.glob("*.png")))
    for content in caches_of(datamodule):
        logger.log_read(content)
    for checkpoint in made:
        logger.log_made(content_of(checkpoint))
    logger.close()
    title = f"phase={cfg.phase.name} → {', '.join(map(str, found_at))}"
    rows = [f"{part}/{name}".lstrip("/") for name in cfg.phase.shown for part in names]
    shown = finish_run(run_dir, title, metrics, shown=rows)
    if trial:
        print("a trial (debug=): nothing is published")
    elif "used_by" in cfg.phase:
        print(f"use it with: {use_command(cfg, found_at[0])}")
    return shown


if __name__ == "__main__":
    run(main, CONFIG)
