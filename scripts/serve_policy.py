"""A policy as a server: python scripts/serve_policy.py policy=released [protocol=rest] [port=8000]

Over a websocket for vla-evaluation-harness, or over HTTP for clients of OpenVLA's servers and `rsd.Client`. Serves
until Ctrl-C, or SIGTERM, which lets it answer what it has begun. What is served (configuration choices, versions, the
policy's contract) is told to every client that asks, so the harness's result files name it.

What surprises first: `protocol` is a group of Hydra's here, of evaluation protocols. So protocol=rest is read as the
setting `wire`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import logging
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from rsd.commands.entry_point import run
from rsd.commands.error_reports import report_errors
from rsd.errors import SettingError
from rsd.provenance import provenance
from rsd.serving.access import Access
from rsd.serving.server import ServingError, serve
from rsd.serving.session import Session
from rsd.settings import Count, require

CONFIG = Path(__file__).parents[1] / "conf" / "serve.yaml"
TOKEN = "RSD_TOKEN"  # environment variable
WEBSOCKET, REST = "websocket", "rest"
log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="../conf", config_name="serve")
@report_errors
def main(cfg: DictConfig) -> None:
    from rsd.commands.configured import check_clock, configured_clock, configured_policy  # --help waits for no torch
    from rsd.commands.identity import policy_hash, policy_space
    from rsd.policy.contract import Contracted
    from rsd.serving.batching import Batched

    if cfg.wire not in (WEBSOCKET, REST):
        raise SettingError(f"protocol is {cfg.wire!r}, expected {WEBSOCKET} or {REST}")
    origins = cast("dict[str, Any]", OmegaConf.to_container(cfg)).get("origins", [])
    access = Access(origins=origins, token=os.environ.get(TOKEN))
    check_host(cfg.host, access)
    limits = instantiate(cfg.limits)
    require("max_batch", cfg.max_batch, Count)
    rest = imported_rest() if cfg.wire == REST else None
    overrides = HydraConfig.get().overrides.task
    clock = configured_clock(cfg, overrides)
    policy = configured_policy(cfg, overrides)
    check_clock(policy, clock)
    if not isinstance(policy, Contracted):
        raise SettingError(f"a {type(policy).__name__} has no contract to tell clients; serve a policy that has one")
    contract, space = policy.contract, policy_space(policy)
    reader = instantiate(cfg.reader)(views=contract.views, max_instruction=limits.instruction)
    choices = {
        group: choice for group, choice in HydraConfig.get().runtime.choices.items() if not group.startswith("hydra/")
    }
    identity = {"policy_hash": policy_hash(cfg, overrides), "space_digest": None if space is None else space.digest}
    about = {
        "model_server": "rsd",
        "capabilities": {},
        "provenance": provenance(),
        "choices": choices,
        "policy": {
            **dataclasses.asdict(contract),
            "num_open_loop_steps": policy.num_open_loop_steps,
            "clock": clock.to_json(),
        },
        **identity,
    }
    shared = Batched(policy, max_batch=cfg.max_batch)
    where = {"host": cfg.host, "port": cfg.port, "access": access}
    if rest is None:
        make_session = partial(Session, shared, reader=reader, seed=cfg.seed, about=about, clock=clock)
        where |= {"ready": partial(announce, "ws", cfg.host), "limits": limits}
        asyncio.run(until_told(partial(serve, make_session, **where)))
    else:
        dialects = rest.Dialects(
            views=contract.views,
            image_size=reader.image_size,
            proprio_dim=contract.proprio_dim,
            max_instruction=limits.instruction,
            space=space,
        )
        service = rest.Service(
            policy=shared,
            dialects=dialects,
            space=space,
            seed=cfg.seed,
            clock=clock,
            limits=limits,
            about=about,
            identity=identity,
        )
        asyncio.run(until_told(partial(rest.serve, service, ready=partial(announce, "http", cfg.host), **where)))
    shared.close()
    log.info("ended")


async def until_told(serve: Callable[..., Awaitable[None]]) -> None:
    """Serve until SIGTERM has come, and what had begun is answered."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await serve(stop=stop)


def check_host(host: str, access: Access) -> None:
    """See that who can reach this server has to show a token, but for this machine's own programs.

    Raises:
        SettingError: others can, and there is none.
    """
    try:
        is_own = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_own = False
    if access.token is None and not is_own:
        raise SettingError(
            f"host={host!r} lets other machines connect, and they would need no token; set {TOKEN} in the environment, "
            "or leave host at 127.0.0.1"
        )


def imported_rest() -> Any:
    """What protocol=rest needs, before anything long starts.

    Raises:
        ServingError: its packages are not installed.
    """
    try:
        import msgpack  # noqa: F401

        from rsd.serving import rest
    except ImportError as error:
        raise ServingError(f"protocol=rest needs {error.name}; install it with: pip install -e '.[serve]'") from error
    return rest


def announce(scheme: str, host: str, port: int) -> None:
    """Say where clients can connect; the harness wants this as server.url."""
    log.info("ready: %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)


if __name__ == "__main__":
    sys.argv[1:] = [re.sub(r"^protocol=", "wire=", one) for one in sys.argv[1:]]
    run(main, CONFIG)
