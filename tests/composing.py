"""Composing a configuration for the second time, without reading the same files and interpolations again.

The tests compose more than a thousand configurations of the same files of conf/. What Hydra reads of a file, what it
merges for the same choices of groups, and what OmegaConf parses of an interpolation depend on nothing else, so they are
kept: the first two for as long as the files stay as they are. Values that are typed are set anew each time.
Subprocesses, and so all commands of the slow tests, are as ever.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pickle
from pathlib import Path
from typing import Any

import omegaconf.base
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, OmegaConf


def compose_quickly() -> None:
    """From now on, in this process."""
    Plugins.instance()  # imports its modules anew, so a class patched before is not the one it uses
    omegaconf.base.parse = functools.cache(omegaconf.base.parse)
    for scheme in ("file", "pkg"):
        source = SourcesRegistry.instance().resolve(scheme)
        source.load_config = _read_once(source.load_config)
    config_loader_impl.create_defaults_list = _chosen_once(config_loader_impl.create_defaults_list)
    ConfigLoaderImpl._compose_config_from_defaults_list = _merged_once(
        ConfigLoaderImpl._compose_config_from_defaults_list
    )
    defaults_list._create_interpolation_map = _if_interpolated(defaults_list._create_interpolation_map)


class _Kept(dict[Any, bytes]):
    """Results by what they depend on, a new copy each time; an error is raised anew."""

    def of(self, key: Any, make: Any) -> Any:
        if key not in self:
            made = make()
            self[key] = pickle.dumps(made)
            return made
        return pickle.loads(self[key])  # noqa: S301 — what this process made; six times as quick as a deep copy


def _read_once(load: Any) -> Any:
    kept = _Kept()

    def load_config(self: ConfigSource, config_path: str) -> Any:
        file = Path(self.path, self._normalize_file_name(config_path))
        status = file.stat() if file.is_file() else None  # a package's files stay as they are
        if status is None and self.scheme() != "pkg":
            return load(self, config_path)
        state = (status.st_mtime_ns, status.st_size) if status else None
        return kept.of((self.path, config_path, state), lambda: load(self, config_path))

    return load_config


def _chosen_once(create: Any) -> Any:
    kept = _Kept()

    def create_defaults_list(repo: Any, config_name: Any, overrides_list: Any, **options: Any) -> Any:
        groups, values = [], []
        for one in overrides_list:
            if not one.is_sweep_override():
                is_value = isinstance(one.value(), dict) or not repo.group_exists(one.key_or_group)
                (values if is_value else groups).append(one)
        key = (_state(repo), config_name, *options.items(), *(one.input_line for one in groups))
        made = kept.of(key, lambda: create(repo, config_name, groups, **options))
        return dataclasses.replace(made, config_overrides=values)

    return create_defaults_list


def _merged_once(merge: Any) -> Any:
    kept = _Kept()

    def compose_config(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> DictConfig:
        return kept.of((_state(repo), repr(defaults)), lambda: merge(self, defaults=defaults, repo=repo))

    return compose_config


def _if_interpolated(create: Any) -> Any:
    def create_interpolation_map(overrides: Any, defaults_list: Any, self_added: bool) -> DictConfig:
        """A quarter of composing goes into what only an interpolated entry of a defaults list reads."""
        if "${" in repr(defaults_list):
            return create(overrides, defaults_list, self_added)
        return OmegaConf.create()

    return create_interpolation_map


def _state(repo: Any) -> tuple[Any, ...]:
    """Where Hydra reads, and the state of every file there; those of packages stay as they are."""
    found: list[Any] = []
    for source in repo.get_sources():
        found.append((source.scheme(), source.path))
        for folder, _, files in os.walk(source.path if source.scheme() == "file" else ""):
            for name in files:
                status = os.stat(os.path.join(folder, name))
                found.append((folder, name, status.st_mtime_ns, status.st_size))
    return tuple(found)
