"""Which setting is tried next, and what was learnt of those before, kept on disk after every trial.

Owns Optuna: a seeded TPE sampler over the knobs, a journal file as its storage. Whoever stops a search, by ctrl-C or by
a crash, loses the trial that was running and none before. Called by run and the benchmark.
"""

import fcntl
import json
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from deploy.errors import DeployError, MissingError, UsageError
from deploy.files import disk_errors_explained, require_writable
from deploy.slo.tune_records import Knob, Setting, TuneTrial
from deploy.tune.knobs import all_settings, made

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

SAMPLER = "Optuna's TPE, multivariate, seeded, after the version's own setting and the corners"
_STUDY = "tune"
_RECORD = "record"
_KEY = "key"
# How the first line of Optuna's journal begins: the making of a study.
_FIRST_BYTES = b'{"op_code":0,'
# The corners come first, so few points of pure chance are needed beyond them.
_STARTUP_TRIALS = 4
# How often the sampler may name a setting that is known before an unknown one is drawn at random.
_REPEATS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """What is searched. `key` says what the trials are valid for: version, bound, knobs, engine and machine."""

    knobs: tuple[Knob, ...]
    first: tuple[Setting, ...]
    key: dict[str, Any]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A setting to be tried, and its number among the trials of this search."""

    number: int
    setting: Setting
    handle: "Trial"


class Search:
    """The trials of one search, old and new. Use it as a context manager: leaving it lets others at the storage."""

    def __init__(self, plan: SearchPlan, storage: Path | None) -> None:
        """With `storage`, trials that lie there are gone on from. Raises UsageError if they are another search's."""
        self.plan = plan
        self._path = storage
        self._random = random.Random(plan.seed)  # noqa: S311 - draws settings, guards nothing
        self._held = _hold(storage) if storage else None
        try:
            with _quiet_optuna() as optuna, disk_errors_explained("opening the search's storage"):
                self._optuna = optuna
                with _damage_explained(storage):
                    self._study = self._open(storage)
                    self._check_key()
                    _ = self.trials
                self._repeat_what_was_interrupted()
                for setting in plan.first:
                    self._study.enqueue_trial(self._parameters(setting), skip_if_exists=True)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the storage; safe to call again."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @property
    def trials(self) -> tuple[TuneTrial, ...]:
        """Every setting that was tried, in order, each once."""
        found = [trial.user_attrs[_RECORD] for trial in self._done() if _RECORD in trial.user_attrs]
        return tuple(TuneTrial.model_validate_json(one) for one in found)

    @property
    def exhausted(self) -> bool:
        """Whether every setting was tried."""
        return not self._untried()

    def ask(self, wanted: Setting | None = None) -> Asked:
        """The next setting, one that was not tried before; `wanted` if it was not. There must be one."""
        known = {trial.setting: trial.score for trial in self.trials}
        with _quiet_optuna():
            if wanted is not None and wanted not in known:
                self._study.enqueue_trial(self._parameters(wanted), skip_if_exists=True)
            for _ in range(_REPEATS):
                handle = self._study.ask()
                setting = self._suggested(handle)
                if setting not in known:
                    return Asked(number=len(known), setting=setting, handle=handle)
                # Told again, so that the sampler's own picture leads it elsewhere.
                self._study.tell(handle, known[setting])
            self._study.enqueue_trial(self._parameters(self._random.choice(self._untried())))
            handle = self._study.ask()
            return Asked(number=len(known), setting=self._suggested(handle), handle=handle)

    def tell(self, asked: Asked, trial: TuneTrial) -> None:
        """Keep what was learnt; from here on it survives whatever happens."""
        with _quiet_optuna(), disk_errors_explained("keeping a trial"):
            asked.handle.set_user_attr(_RECORD, trial.model_dump_json())
            # A setting that cannot be loaded is the worst there is, and the sampler is to keep away from it.
            self._study.tell(asked.handle, trial.score)

    def _open(self, storage: Path | None) -> "Study":
        optuna = self._optuna
        backend: Any = None
        if storage is not None:
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            backend = JournalStorage(JournalFileBackend(str(storage.resolve())))
        known = backend is not None and any(study.study_name == _STUDY for study in backend.get_all_studies())
        study: Study = optuna.create_study(
            study_name=_STUDY, storage=backend, direction="maximize", load_if_exists=True, sampler=self._sampler(0)
        )
        if known:
            # Another seed for each go, or a resumed search would draw again what it drew before.
            study.sampler = self._sampler(len(study.trials))
        return study

    def _sampler(self, offset: int) -> Any:
        return self._optuna.samplers.TPESampler(
            seed=self.plan.seed + offset,
            multivariate=True,
            group=True,
            n_startup_trials=_STARTUP_TRIALS,
            gamma=_good_trials,
        )

    def _check_key(self) -> None:
        key = json.dumps(self.plan.key, sort_keys=True)
        found = self._study.user_attrs.get(_KEY)
        if found is None:
            self._study.set_user_attr(_KEY, key)
        elif found != key:
            names = [name for name, value in self.plan.key.items() if json.loads(found).get(name) != value]
            raise UsageError(
                f"{self._path} holds a search of another {', '.join(names)}",
                expected="the storage of the same search",
                fix="name another --storage, or search anew without --resume",
            )

    def _repeat_what_was_interrupted(self) -> None:
        state = self._optuna.trial.TrialState
        for trial in self._study.get_trials(deepcopy=False, states=(state.RUNNING,)):
            self._study.tell(trial.number, state=state.FAIL)
            if trial.params:
                self._study.enqueue_trial(trial.params)

    def _done(self) -> "list[FrozenTrial]":
        return self._study.get_trials(deepcopy=False, states=(self._optuna.trial.TrialState.COMPLETE,))

    def _untried(self) -> list[Setting]:
        known = {trial.setting for trial in self.trials}
        return [setting for setting in all_settings(self.plan.knobs) if setting not in known]

    def _suggested(self, handle: "Trial") -> Setting:
        """The setting of a trial. Values are named by their place, so that the sampler sees their order."""
        chosen: dict[str, int] = {}
        for knob in _limit_first(self.plan.knobs):
            if knob.name == "delay_us" and chosen.get("batch_limit") == 1:
                continue
            chosen[knob.name] = knob.values[handle.suggest_int(knob.name, 0, len(knob.values) - 1)]
        return made(dict(chosen))

    def _parameters(self, setting: Setting) -> dict[str, int]:
        given = setting.model_dump(exclude_none=True)
        return {knob.name: knob.values.index(given[knob.name]) for knob in self.plan.knobs if knob.name in given}


def set_aside(storage: Path) -> None:
    """Give the trials of an earlier search another name, `.before`. Raises UsageError if a search is using them."""
    if storage.exists():
        descriptor = _locked(storage)
        try:
            storage.replace(storage.with_suffix(".before"))
        finally:
            os.close(descriptor)


@contextmanager
def _damage_explained(storage: Path | None) -> Iterator[None]:
    """Raises UsageError for a storage that begins as one and does not go on as one: Optuna trusts what it replays."""
    try:
        yield
    except (DeployError, OSError):
        raise
    except Exception as error:
        raise UsageError(
            f"{storage} cannot be read to its end: {type(error).__name__}: {error}",
            expected="what tune has written, unchanged",
            fix="name another --storage, or search anew without --resume",
        ) from error


def _locked(storage: Path) -> int:
    """The storage's descriptor, locked until it is closed.

    Raises UsageError if another search has it, or no file can be written there.
    """
    if not storage.exists():
        require_writable(storage)
    with disk_errors_explained("opening the search's storage"):
        descriptor = os.open(storage, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            f"another search is using {storage}", expected="one search at a time", fix="wait for it, or end it"
        ) from error
    return descriptor


def _hold(storage: Path) -> int:
    """The storage's descriptor, locked while the search lasts, its last line whole.

    Raises UsageError if another search has it, or it is none.
    """
    descriptor = _locked(storage)
    found = storage.read_bytes()
    if found and not found.startswith(_FIRST_BYTES):
        os.close(descriptor)
        raise UsageError(
            f"{storage} is no storage of a search",
            expected="a file that tune has written",
            fix="name another --storage",
        )
    # A search that was killed while it wrote leaves half a line, which Optuna would append to, and its own lock.
    os.ftruncate(descriptor, found.rfind(b"\n") + 1)
    with suppress(FileNotFoundError):
        Path(f"{storage.resolve()}.lock").unlink()
    return descriptor


def _good_trials(count: int) -> int:
    """How many trials the sampler takes for good ones. Its own tenth is a single one in a search of twenty trials."""
    return max(2, math.ceil(count / 4))


def _limit_first(knobs: Sequence[Knob]) -> Iterator[Knob]:
    """The knobs with the delay last, since it exists only where requests are merged."""
    yield from sorted(knobs, key=lambda knob: knob.name == "delay_us")


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna without its log on stderr, and without its remarks on what is experimental in it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingError("Optuna cannot be imported", fix="pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # It wants to drop `gamma` in its release 6; see `_good_trials` for why that is not left to it.
        warnings.filterwarnings("ignore", "`gamma`", FutureWarning)
        yield optuna
