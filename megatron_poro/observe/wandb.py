"""wandb as a sink: one wandb run over all starts of a run, online or offline.

The id lies in RUN/wandb_id. Every start resumes that run. Where a start repeats steps, or a rollback goes back, the wandb run is
rewound to the step it goes on from (`resume_from`). Not every server does that; the repeated steps then keep their first values,
for wandb drops what is not later than the last step it has, and the curve stays one curve.

Online, all of this happens as the run goes on. Offline, each start leaves a part in RUN/wandb, and `wandb_sync.py` uploads.
`wandb_process.py` keeps it away from the trainer.
"""

import importlib
import importlib.util
import netrc
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from megatron_poro.config import ObserveConfig
from megatron_poro.errors import ConfigError
from megatron_poro.observe.account import Account
from megatron_poro.observe.catalog import METRICS, Numbers, numbers_of
from megatron_poro.observe.jsonl import Record, read_records, those_that_count
from megatron_poro.observe.wandb_marks import Marks, save_marks
from megatron_poro.observe.wandb_news import add_checkpoint, alert_of, facts_of, git_commit, read_events

ONLINE, OFFLINE, DISABLED = "online", "offline", "disabled"
INIT_TIMEOUT_SECONDS = 30.0
FINISH_TIMEOUT_SECONDS = 8.0
UPLOAD_TIMEOUT_SECONDS = 600.0
SUMMARIES = {
    "train/loss": "min,last",
    "train/perplexity": "min,last",
    "loss_by_source": "min,last",
    "validation_loss": "min,last",
    "validation_perplexity": "min,last",
    "throughput": "mean,last",
}
"""What is shown of a metric, or of a section of them, beside the last value."""
STEP = "progress/step"
"""The x axis of every metric."""


@dataclass(frozen=True)
class Target:
    """The wandb run that belongs to a run directory, and the configuration shown with it.

    wandb's own files go into `files`. `trainer_pid` is 0 for an upload, from a machine that is not the one that trains.
    """

    project: str
    entity: str
    run_id: str
    run_directory: str
    config: dict[str, Any]
    files: str
    trainer_pid: int

    @property
    def directory(self) -> Path:
        """The run directory."""
        return Path(self.run_directory)


def check_wandb() -> None:
    """Raise ConfigError when wandb is not installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(["observe.wandb_project: wandb is not installed; `pip install wandb` or leave the key empty"])


def build_target(observe: ObserveConfig, run_directory: Path, config: dict[str, Any]) -> Target:
    """The wandb run of a run directory; its id is made once."""
    path = run_directory / "wandb_id"
    if not path.is_file():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    run_id = path.read_text(encoding="utf-8").strip()
    where = str(run_directory)
    return Target(observe.wandb_project, observe.wandb_entity, run_id, where, config, files=where, trainer_pid=os.getpid())


def wandb_mode(run_directory: Path) -> str:
    """Online, offline or disabled: WANDB_MODE decides, else a Slurm job is offline, and so is whoever has no key."""
    if mode := os.environ.get("WANDB_MODE", ""):
        return {"dryrun": OFFLINE, "run": ONLINE}.get(mode, mode)
    if os.environ.get("SLURM_JOB_ID"):
        return OFFLINE
    if has_key():
        return ONLINE
    print(f"wandb has no key and stays offline; `wandb login`, then `poro wandb-sync {run_directory}` uploads", flush=True)
    return OFFLINE


def has_key() -> bool:
    """Whether there is a key for the server, in the environment or where `wandb login` leaves it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbRun:
    """An open wandb run that takes records; it lacks steps from `first_step` on.

    With `back_to` it is rewound to that step; a server that does not do it costs a warning.
    """

    def __init__(self, target: Target, mode: str, *, back_to: int | None = None) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._target = target
        words = {
            "project": target.project,
            "entity": target.entity or None,
            "id": target.run_id,
            "name": target.directory.name,
            "dir": target.files,
            "config": target.config,
            "mode": mode,
        }
        self._run = self._open(words, back_to)
        self.first_step = int(self._run.starting_step)
        self._step = -1
        self._late: Numbers = {}
        self._define_metrics()

    def _open(self, words: dict[str, Any], back_to: int | None) -> Any:
        if back_to is not None:
            try:
                moment = f"{self._target.run_id}?_step={back_to}"
                return self._wandb.init(**words, resume_from=moment, settings=_settings(self._wandb, self._target.trainer_pid))
            except Exception as error:  # the server's word: it cannot, or may not
                print(
                    f"warning: wandb does not go back to step {back_to}: {first_line(error)}; "
                    "steps that it has already keep their first values there",
                    file=sys.stderr,
                    flush=True,
                )
                self._wandb.teardown()  # else its service takes the id to be in use
        return self._wandb.init(**words, resume="allow", settings=_settings(self._wandb, self._target.trainer_pid))

    @property
    def url(self) -> str:
        """Where it is shown; empty offline."""
        return str(self._run.url or "")

    def log(self, record: Record, account: Account) -> None:
        """Log what a record has: numbers, facts about the start, a checkpoint, an alert."""
        self.log_numbers(record, account)
        if record["event"] == "start":
            self._run.config.update(facts_of(record), allow_val_change=True)
        elif record["event"] == "checkpoint":
            add_checkpoint(self._wandb, self._run, record)
        if found := alert_of(record):
            self.alert(*found)

    def log_numbers(self, record: Record, account: Account) -> None:
        """Log the numbers of a record, and nothing for a step that the run has already.

        What comes late, as a checkpoint does, goes to the newest step, or to the next.
        """
        numbers = numbers_of(record)
        if record["event"] not in ("step", "validation"):
            self._late.update(numbers)
        elif numbers and record["step"] >= self.first_step:
            self._step = record["step"]
        else:
            return
        if self._step >= 0 and (numbers or self._late):
            self._run.log({**numbers, **self._late, **account.numbers(), STEP: self._step}, step=self._step)
            self._late.clear()

    def alert(self, title: str, text: str, level: str) -> None:
        """Send an alert."""
        self._run.alert(title=title, text=text, level=self._wandb.AlertLevel[level], wait_duration=0)

    def finish(self, exit_code: int = 0) -> None:
        """Mark the wandb run ended. Raises TimeoutError when the server does not take everything in time."""
        self._run.finish(exit_code=exit_code)

    def _define_metrics(self) -> None:
        self._run.define_metric(STEP)
        sections = dict.fromkeys(metric.name.partition("/")[0] for metric in METRICS)
        for name in [*(name for name in SUMMARIES if "/" in name), *sections]:
            glob = name if "/" in name else f"{name}/*"
            self._run.define_metric(glob, step_metric=STEP, summary=SUMMARIES.get(name))


def _settings(wandb: Any, trainer_pid: int) -> Any:
    """No console, diff or code: they may hold anything, and the command line is not the trainer's."""
    elsewhere = {"x_disable_stats": True, "x_disable_meta": True, "x_save_requirements": False}
    return wandb.Settings(
        init_timeout=INIT_TIMEOUT_SECONDS,
        finish_timeout=FINISH_TIMEOUT_SECONDS if trainer_pid else UPLOAD_TIMEOUT_SECONDS,
        finish_timeout_raises=True,
        x_transaction_log_flush_interval=1.0,
        console="off",
        disable_git=True,
        disable_code=True,
        git_commit=git_commit(),
        silent=True,
        **({"x_stats_pid": trainer_pid} if trainer_pid else elsewhere),
    )


def open_after(target: Target, step: int) -> WandbRun:
    """The wandb run, online, with nothing later than `step` (-1: empty) as far as the server takes it back."""
    run = WandbRun(target, ONLINE)
    if run.first_step <= step + 1:
        return run
    run.finish()
    return WandbRun(target, ONLINE, back_to=max(step, 0))


class WandbSink:
    """Opens the run's wandb run at each start, and logs to it. `earlier_bytes` of metrics.jsonl are of earlier processes."""

    def __init__(self, target: Target, mode: str, earlier_bytes: int) -> None:
        self._target, self._mode = target, mode
        self._earlier = read_records(target.directory / "metrics.jsonl", earlier_bytes)
        self._last_step = max((record["step"] for record in self._earlier), default=-1)
        self._run: WandbRun | None = None
        self._num_records = 0
        self._account = Account()

    def write(self, record: Record) -> None:
        """Log one record; a `start` that goes back rewinds."""
        self._num_records += 1
        goes_back = record["event"] == "start" and record["step"] < self._last_step
        if self._run is None:
            self._run = self._open(record["step"], goes_back=goes_back)
            self._tell_earlier(self._run, record)
        elif goes_back:
            self._run.finish()
            self._run = self._open(record["step"], goes_back=True)
        self._account.add(record)
        self._run.log(record, self._account)
        self._last_step = record["step"] if goes_back else max(self._last_step, record["step"])

    def close(self, *, failed: bool = False) -> None:
        """Mark the wandb run finished, or failed, and note that it has everything if it has."""
        if self._run is None:
            return
        self._run.finish(exit_code=int(failed))
        directory, total = self._target.directory, len(self._earlier) + self._num_records
        if self._mode == ONLINE and len(read_records(directory / "metrics.jsonl")) == total:
            save_marks(directory, Marks(total, len(read_events(directory))))

    def _open(self, step: int, *, goes_back: bool) -> WandbRun:
        try:
            if self._mode == ONLINE:
                return open_after(self._target, step)
        except Exception as error:  # no key, no network: the run goes on, and everything can be uploaded later
            directory = self._target.directory
            way_out = f"`poro wandb-sync {directory}` uploads"
            print(f"warning: wandb goes on offline: {first_line(error)}; {way_out}", file=sys.stderr, flush=True)
            importlib.import_module("wandb").teardown()  # else its service takes the id to be in use
            self._mode = OFFLINE
        return WandbRun(self._target, self._mode, back_to=step if goes_back else None)

    def _tell_earlier(self, run: WandbRun, first: Record) -> None:
        """What a server lacks of earlier starts, such as the seconds before a kill; and how the last one ended."""
        counting = {id(record) for record in those_that_count([*self._earlier, first])}
        for record in self._earlier:
            self._account.add(record)
            if self._mode == ONLINE and id(record) in counting:
                run.log_numbers(record, self._account)
        since = max((record["time"] for record in self._earlier if record["event"] == "start"), default=0.0)
        for event in read_events(self._target.directory):
            if event["time"] > since and (found := alert_of(event)):
                run.alert(*found)


def first_line(error: Exception) -> str:
    """What an error says, for a warning of one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
