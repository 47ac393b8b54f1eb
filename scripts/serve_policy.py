"""Let vla-evaluation-harness drive a policy: python scripts/serve_policy.py model=oft_small [port=8000]

Serves until Ctrl-C. What was served (configuration choices, versions, the policy's contract) goes into its answer to
every client's hello, so the harness's result files name it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.commands.entry_point import report_errors, run
from rsd.errors import SettingError
from rsd.provenance import provenance
from rsd.serving.access import Access
from rsd.serving.server import serve
from rsd.serving.session import Session

CONFIG = Path(__file__).parents[1] / "conf" / "serve.yaml"
TOKEN = "RSD_TOKEN"  # environment variable
LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.commands.configured import check_clock, configured_clock, configured_policy  # --help waits for no torch
    from rsd.policy.contract import Contracted

    origins = cast("dict[str, Any]", OmegaConf.to_container(cfg)).get("origins", [])
    access = Access(origins=origins, token=os.environ.get(TOKEN))
    overrides = HydraConfig.get().overrides.task
    clock = configured_clock(cfg, overrides)
    policy = configured_policy(cfg, overrides)
    check_clock(policy, clock)
    if not isinstance(policy, Contracted):
        raise SettingError(f"a {type(policy).__name__} has no contract to tell clients; serve a policy that has one")
    reader = instantiate(cfg.reader)(views=policy.contract.views)
    choices = {
        group: choice for group, choice in HydraConfig.get().runtime.choices.items() if not group.startswith("hydra/")
    }
    about = {
        "model_server": "rsd",
        "capabilities": {},
        "provenance": provenance(),
        "choices": choices,
        "policy": {
            **dataclasses.asdict(policy.contract),
            "num_open_loop_steps": policy.num_open_loop_steps,
            "clock": clock.to_json(),
        },
    }
    make_session = partial(Session, policy, reader=reader, seed=cfg.seed, about=about, clock=clock)
    ready = partial(announce, cfg.host, access)
    asyncio.run(serve(make_session, host=cfg.host, port=cfg.port, ready=ready, access=access))


def announce(host: str, access: Access, port: int) -> None:
    """Say where clients can connect; the harness wants this as server.url."""
    if access.token is None and host not in LOOPBACK:
        log.warning("whoever reaches this machine may connect; set %s in the environment to ask for a token", TOKEN)
    log.info("ready: ws://%s:%d", host, port)


if __name__ == "__main__":
    run(main, CONFIG)
