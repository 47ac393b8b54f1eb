"""Weights & Biases: figures, media, and what a run was made of, with or without a network.

What surprises first: no run fails or waits because of it. Without a network an online run becomes an offline one; when
its server goes away, the rest is kept in the run folder and the end waits `timeout_s` for it; when its own process dies
(kill -9, no memory), figures go on as csv. Each of these is said in one line, with the command that sends the rest.
"""

from __future__ import annotations

import functools
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import pytorch_lightning.loggers
from pytorch_lightning.utilities import rank_zero_only

from rsd.errors import SettingError
from rsd.processes import is_first_process, say
from rsd.settings import Positive, Text, checked
from rsd.training.lineage import NEVER_SENT, artifact_name, digests_of, group_of, inputs_of, reference
from rsd.training.loggers import CsvLogger, LoggerError, check_table, shown_as

MODES = ("offline", "online", "disabled")
REACH_S = 5.0  # that a server has to answer anything at all, before a run begins

Given = ParamSpec("Given")


def or_csv(
    method: Callable[Concatenate[WandbLogger, Given], None],
) -> Callable[Concatenate[WandbLogger, Given], None]:
    """Decorator: the first time that wandb fails is told, and from then on the csv logger is called instead.

    ValueError and TypeError are the caller's: what was to be logged cannot be.
    """

    @functools.wraps(method)
    def call(self: WandbLogger, *args: Given.args, **kwargs: Given.kwargs) -> None:
        if self.instead is None:
            try:
                return method(self, *args, **kwargs)
            except (ValueError, TypeError):
                raise
            except Exception as error:  # noqa: BLE001  of whatever kind: a socket, a process, a server's answer
                self.give_up(error)
        getattr(self.instead, method.__name__)(*args, **kwargs)

    return call


class WandbLogger(pytorch_lightning.loggers.WandbLogger):
    """A Weights & Biases run; offline ones are written to run_dir/wandb and need neither account nor network.

    Args:
        run_dir: The run folder; its name is the run's name.
        project: The project's name at Weights & Biases.
        mode: "offline", "online" or "disabled"; an offline run is sent later with `wandb sync`.
        group: Runs that belong together; None is the sweep's folder name for a job of a sweep, and WANDB_RUN_GROUP,
            which a pipeline sets, for others.
        job_type: What the run does: the phase's name, "eval" or "cache".
        tags: Labels to filter by.
        upload: Whether checkpoints are sent; otherwise their digests are.
        timeout_s: Longest wait for a server, when a run begins and again when it ends.

    Attributes:
        instead: The logger that goes on where wandb could not.

    Raises:
        SettingError: no such mode.
        LoggerError: Weights & Biases is not installed; or an online run has no account, which is seen here and not at
            the first figure.
    """

    @checked
    def __init__(
        self,
        *,
        run_dir: Path,
        project: Text,
        mode: str,
        group: Text | None = None,
        job_type: Text | None = None,
        tags: Sequence[str] = (),
        upload: bool = False,
        timeout_s: Positive = 60.0,
    ) -> None:
        if mode not in MODES:
            raise SettingError(f"logger.mode is {mode!r}, expected one of {list(MODES)}; it is WANDB_MODE's, where set")
        try:
            import wandb
        except ImportError as error:
            raise LoggerError(f"logger=wandb needs wandb ({error}); install it, or set logger=csv") from error

        self.instead: CsvLogger | None = None
        self._run_dir, self._upload, self._timeout_s = Path(run_dir), upload, timeout_s
        self._finish(wandb.run)  # a multirun's last job, if it failed: Lightning would go on writing into its run
        settings = wandb.Settings(init_timeout=timeout_s, finish_timeout=timeout_s, finish_timeout_raises=True)
        super().__init__(
            save_dir=str(run_dir),
            name=self._run_dir.name,
            project=project,
            mode=mode,
            group=group or group_of(self._run_dir),
            job_type=job_type,
            tags=list(tags),
            settings=settings,
        )
        del self._wandb_init["anonymous"]  # Lightning's, of which wandb warns
        if mode == "online" and is_first_process():
            self._begin_online()

    def _begin_online(self) -> None:
        """Begin the run; an offline one where the server does not answer.

        Raises:
            LoggerError: there is no account, or it is refused.
        """
        import wandb

        advice = (
            "log in with `wandb login`, set WANDB_API_KEY, or leave it offline (WANDB_MODE=offline), to be sent later"
        )
        try:
            if not wandb.login(prompt=False, verify=False):  # on a terminal, the run itself would ask for a key
                raise LoggerError(f"logger=wandb with mode online cannot begin: No API key found; {advice}")
            reason = why_unreachable(wandb.setup().settings.base_url)
            if reason is None:
                _ = self.experiment
        except wandb.errors.CommError as error:
            reason = " ".join(str(error).split())
        except wandb.errors.Error as error:
            line = " ".join(str(error).split())
            raise LoggerError(f"logger=wandb with mode online cannot begin: {line}; {advice}") from error
        if reason is not None:
            self._wandb_init["mode"] = "offline"
            say(f"note: wandb: {reason}; the run is written offline. Send it later: {self._sync_command()}")

    @rank_zero_only
    @or_csv
    def log_hyperparams(self, params: Any) -> None:
        """Keep the resolved config, and what the run reads with its digests, as `inputs`."""
        super().log_hyperparams({**params, "inputs": digests_of(self._run_dir)})
        for content in inputs_of(self._run_dir).values():
            if content["digest"] is not None:
                self._publish(self._named(content), read=True)

    @rank_zero_only
    @or_csv
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)

    @or_csv
    def log_table(  # type: ignore[override]  # ours, the same for all loggers; Lightning never calls its own
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """Show a table; one of two columns, a label and a number, as bars too.

        Raises:
            ValueError: a row has another number of cells than there are columns.
        """
        import wandb

        check_table(name, columns, rows)
        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
        self.experiment.log({f"tables/{name}": table})
        if len(columns) == 2:
            bars = wandb.plot.bar(table, columns[0], columns[1], title=name.replace("_", " "))
            self.experiment.log({f"bars/{name}": bars})

    @or_csv
    def log_files(self, files: Sequence[Path]) -> None:
        """Show plots (png), videos (mp4) and reports (html) in the run, under the same names in every run.

        Raises:
            ValueError: a file of another kind.
        """
        import wandb

        shown: dict[str, Callable[[str], Any]] = {
            ".png": wandb.Image,
            ".mp4": functools.partial(wandb.Video, format="mp4"),
            ".html": functools.partial(wandb.Html, inject=False),
        }
        names = [shown_as(file) for file in files]
        if files:
            made = [shown[file.suffix](str(file)) for file in files]
            self.experiment.log(dict(zip(names, made, strict=True)))

    @rank_zero_only
    @or_csv
    def log_read(self, content: Mapping[str, Any]) -> None:
        """An input of the run that inputs.json does not name: a hidden-state cache.

        Args:
            content: {"kind", "digest", "path", …}; see `rsd.inputs.content_of`.
        """
        self._publish(self._named(content), read=True)

    @rank_zero_only
    @or_csv
    def log_made(self, content: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """An output of the run; the bytes of a checkpoint only with `upload`.

        Args:
            content: As in `log_read`.
            files: Small ones that are sent in any case, in an artifact of their own.
        """
        import wandb

        self._publish(self._named(content), read=False)
        is_sent = self._upload and content["kind"] not in NEVER_SENT
        sent = [*files, *(sorted(Path(content["folder"]).iterdir()) if is_sent else ())]
        if not sent:
            return
        artifact = wandb.Artifact(name=f"{artifact_name(content)}-files", type=f"{content['kind']}-files")
        for file in sent:
            artifact.add_file(str(file), policy="immutable", skip_cache=True)  # read where it lies, not copied first
        self._publish(artifact, read=False)

    @rank_zero_only
    @or_csv
    def finalize(self, status: str) -> None:
        super().finalize(status)

    @rank_zero_only
    def close(self) -> None:
        """Send what is left, for at most `timeout_s`; say what is not sent."""
        if self.instead is None:
            self._finish(self._experiment)
        else:
            self.instead.close()

    def give_up(self, error: BaseException) -> None:
        """Go on in csv, and say so."""
        print(
            f"note: wandb has stopped ({_told(error)}); figures from here on are in {self._run_dir / 'csv'}. What came "
            f"before is kept; send it: {self._sync_command()}",
            flush=True,
        )
        self.instead = CsvLogger(run_dir=self._run_dir)
        forget()

    def _named(self, content: Mapping[str, Any]) -> Any:
        """The artifact of a content."""
        import wandb
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

        artifact = wandb.Artifact(name=artifact_name(content), type=content["kind"], metadata=dict(content))
        digest = reference(content)
        entry: Any = {"path": "content", "ref": digest, "digest": digest}  # wandb has types of its own for these texts
        artifact.manifest.add_entry(ArtifactManifestEntry(**entry))
        return artifact

    def _publish(self, artifact: Any, *, read: bool) -> None:
        """Hand an artifact over at once: wandb's log_artifact asks the server first, use_artifact needs one."""
        run = self.experiment
        if self._wandb_init["mode"] == "disabled":
            return
        artifact.finalize()
        run._interface.publish_artifact(
            run, artifact, aliases=["latest"], is_user_created=True, use_after_commit=read, finalize=True
        )

    def _finish(self, run: Any) -> None:
        """End a run; say what could not be sent."""
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:  # noqa: BLE001  of whatever kind, see or_csv
            print(
                f"note: wandb could not send everything within logger.timeout_s={self._timeout_s:g} ({_told(error)}); "
                f"it is kept. Send it: {self._sync_command(run)}",
                flush=True,
            )
            forget()

    def _sync_command(self, run: Any = None) -> str:
        """The command that sends a run later."""
        run = run or self._experiment
        folder = run.settings.sync_dir if run is not None else self._run_dir / "wandb" / "offline-run-*"
        return f"wandb sync {folder}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def forget() -> None:
    """Let go of wandb's process, which may be gone, so that the next run in this process starts another."""
    import wandb

    try:
        wandb.teardown()
    except Exception:  # noqa: BLE001  there is nobody to say goodbye to, which is what was to be done
        pass
    wandb.run = None


def why_unreachable(url: str) -> str | None:
    """Why a server does not answer; None if it does, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=REACH_S).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return f"{url} cannot be reached ({getattr(error, 'reason', error)})"
    return None
