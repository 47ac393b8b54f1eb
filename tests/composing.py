"""Composing a configuration for the second time, without reading the same files and interpolations again.

The tests compose more than a thousand configurations of the same files of conf/. What Hydra reads of a file and what
OmegaConf parses of an interpolation depend on nothing else, so they are kept: the first for as long as the file stays
as it is. Subprocesses, and so all commands of the slow tests, are as ever.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource


def compose_quickly() -> None:
    """From now on, in this process."""
    Plugins.instance()  # imports its modules anew, so a class patched before is not the one it uses
    omegaconf.base.parse = functools.cache(omegaconf.base.parse)
    for scheme in ("file", "pkg"):
        source = SourcesRegistry.instance().resolve(scheme)
        source.load_config = _read_once(source.load_config)


def _read_once(load: Any) -> Any:
    stored: dict[tuple[str, str, int, int], ConfigResult] = {}

    def load_config(self: ConfigSource, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        status = file.stat() if file.is_file() else None  # a package's files stay as they are
        if status is None and self.scheme() != "pkg":
            return load(self, config_path)
        key = (self.path, config_path, status.st_mtime_ns if status else 0, status.st_size if status else 0)
        if key not in stored:
            stored[key] = load(self, config_path)
        return copy.deepcopy(stored[key])

    return load_config
