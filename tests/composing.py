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
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult


def compose_quickly() -> None:
    """From now on, in this process."""
    omegaconf.base.parse = functools.cache(omegaconf.base.parse)
    FileConfigSource.load_config = _read_once(FileConfigSource.load_config)


def _read_once(load: Any) -> Any:
    stored: dict[tuple[Path, int, int], ConfigResult] = {}

    def load_config(self: FileConfigSource, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            return load(self, config_path)
        status = file.stat()
        key = (file, status.st_mtime_ns, status.st_size)
        if key not in stored:
            stored[key] = load(self, config_path)
        return copy.deepcopy(stored[key])

    return load_config
