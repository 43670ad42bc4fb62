"""The trials of a search as an Optuna journal in its folder, and the drawing of further trials.

A generation is a function of the seed and of the generations before it, in any process. So only
finished trials are saved: after a kill, the same generation is drawn again. Optuna's own tools can
read the journal.
"""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import SpratError, shown
from sprat.files import writing
from sprat.runtime import derive_seed
from sprat.searching.cost import Counter
from sprat.searching.space import Space
from sprat.searching.trials import Trial, TrialRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # in a notebook, its tqdm asks for ipywidgets
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
    from optuna.trial import FrozenTrial, TrialState, create_trial

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

STUDY, OF_SEARCH = "search", "settings_sha256"
# attributes of a trial; the sha256 is that of both others
RECORD, OF, SHA256 = "record", "trials_of_generation", "sha256"
# draws for each trial of a generation, after which the rest is left out: nearly all break a limit
MOST_DRAWS = 20
# states of trials for Optuna
STATES = dict.fromkeys(("refused", "untried", "stopped"), TrialState.PRUNED)


class Journal:
    """Optuna's journal of one search; the search's folder is locked while it is open.

    Args:
        path: its file, which is created if it does not exist.
        digest: digest of the search's settings.
        last: epochs of the last rung.

    Raises:
        SpratError: it is damaged, belongs to another search, or cannot be written.
    """

    def __init__(self, path: Path, digest: str, space: Space, last: int) -> None:
        self.path, self.space, self.last = path, space, last
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._reading():
            begun = path.exists() and b"\n" in path.read_bytes()
            if not begun:
                _mend(path)
            lock = JournalFileOpenLock(str(path))  # without links, which not every system has
            storage = JournalStorage(JournalFileBackend(str(path), lock))
            self.study = (
                optuna.load_study(study_name=STUDY, storage=storage)
                if begun
                else optuna.create_study(study_name=STUDY, storage=storage, direction="maximize")
            )
            found = self.study.user_attrs.get(OF_SEARCH)
        if found is None and not self.study.trials:
            with writing(path):
                _mend(path)
                self.study.set_user_attr(OF_SEARCH, digest)
        elif found != digest:
            raise SpratError(
                f"{path} is the journal of another search. Put this search's journal back, or "
                "start a new search."
            )

    def read(self) -> list[list[Trial]]:
        """Return the trials, generation by generation; the last may lack some after a kill.

        Raises:
            SpratError: the journal is damaged.
        """
        generations: list[list[Trial]] = []
        with self._reading():
            for number, frozen in enumerate(self.study.get_trials(deepcopy=False)):
                attributes = frozen.user_attrs
                trial = Trial.from_record(attributes[RECORD], self.last)
                if attributes[SHA256] != _sha256(attributes[RECORD], attributes[OF]):
                    raise ValueError(f"Trial {trial.number} differs from what was written.")
                if trial.number != number:
                    raise ValueError(f"Trial {number} is missing.")
                if trial.generation == len(generations):
                    generations.append([])
                generations[trial.generation].append(trial)
        return generations

    def size(self) -> int:
        """Return the number of trials of the last generation, missing ones included."""
        return int(self.study.get_trials(deepcopy=False)[-1].user_attrs[OF])

    def add(self, trials: Sequence[Trial], of: int) -> None:
        """Append finished trials, in their order, to a generation of `of` trials.

        Raises:
            WriteError: the journal cannot be written.
        """
        with writing(self.path):
            _mend(self.path)
            for trial in trials:
                self.study.add_trial(self._frozen(trial, of))

    def _frozen(self, trial: Trial, of: int = 0) -> FrozenTrial:
        record = trial.to_record()
        attributes = {RECORD: record, OF: of, SHA256: _sha256(record, of)}
        return frozen(trial, self.space, attributes)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with writing(self.path):
                yield
        except (SpratError, OSError) as error:
            if isinstance(error, OSError):
                raise
            raise self._damaged(error) from error
        except Exception as error:  # a damaged journal raises anything
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> SpratError:
        return SpratError(
            f"{self.path} is damaged ({shown(str(error))[1:-1]}). Put back a copy of it, or start "
            "a new search."
        )


def _mend(path: Path) -> None:
    """Remove what a kill left: an incomplete last line, and Optuna's lock, which the lock of the
    search's folder makes unnecessary."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if path.exists() and (size := _whole_bytes(path)) < path.stat().st_size:
        with path.open("rb+") as file:
            file.truncate(size)


def _whole_bytes(path: Path) -> int:
    """Return the size of a journal without an incomplete last line, which Optuna skips."""
    content = path.read_bytes() if path.exists() else b""
    *lines, torn = content.split(b"\n")
    if lines:
        try:
            json.loads(lines[-1])
        except ValueError:
            torn = lines[-1] + b"\n" + torn
    return len(content) - len(torn)


def _sha256(record: TrialRecord, of: int) -> str:
    return hashlib.sha256(json.dumps([record, of], sort_keys=True).encode()).hexdigest()


def frozen(trial: Trial, space: Space, attributes: dict[str, Any]) -> FrozenTrial:
    """Return a trial in Optuna's form. A stopped one is "pruned" with its accuracy by epochs, so
    that TPE ranks it below those that were trained for longer."""
    complete = trial.state in ("complete", "diverged")
    return create_trial(
        state=TrialState.COMPLETE if complete else STATES[trial.state],
        value=trial.val if complete else None,
        params=trial.point,
        distributions=space.choices(),
        intermediate_values=trial.rungs,
        constraints=trial.excess,
        user_attrs=attributes,
    )


def ask(
    space: Space,
    counter: Counter,
    before: Sequence[Trial],
    count: int,
    *,
    generation: int,
    seed: int,
    last: int,
    random: bool = False,
) -> list[Trial]:
    """Return the trials of a generation: `count` that meet every limit, and those that were drawn
    and refused.

    Points are drawn by TPE (Bergstra et al. 2011), which models the densities of good and of bad
    trials, jointly over all choices. It is useful after few trials, handles categorical choices and
    trials that were stopped early, and supports constraints: the more a trial breaks a limit, the
    worse it is. A genetic algorithm (NSGA-II) would need hundreds of trials for a Pareto front of
    accuracy and costs, which is not needed: the budget is given, and within it only accuracy
    counts. Trials without a result count as bad, so that those of one generation differ ("constant
    liar").

    Args:
        before: trials of the generations before.
        random: whether to draw at random instead, for comparison.

    Returns:
        Trials in the order drawn. If nearly none meet the limits, fewer than `count` do.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials([frozen(trial, space, {}) for trial in before])
    asked: list[Trial] = []
    seen = {trial.design for trial in before}
    family = [] if before or generation else space.family()
    for point in family:
        study.enqueue_trial(point)
    fitting = 0
    for draw in range(len(family) + MOST_DRAWS * count):
        if fitting == count:
            break
        study.sampler = _sampler(derive_seed("search", seed, generation, draw), random)
        drawn = study.ask(space.choices())
        design, counted = space.design(drawn.params, counter)
        if design in seen and counted.kept:
            study.tell(drawn, state=TrialState.FAIL)  # as if it had not been drawn
            continue
        seen.add(design)
        trial = Trial(
            len(before) + len(asked), generation, drawn.params, design, counted.cost,
            counted.excess, last=last,
        )  # fmt: skip
        asked.append(trial)
        fitting += not trial.refused
        if trial.refused:
            for limit, excess in trial.excess.items():
                drawn.set_constraint(limit, excess)
            study.tell(drawn, state=TrialState.PRUNED)
    return asked


def _sampler(seed: int, random: bool) -> "BaseSampler":
    seed %= 2**32
    if random:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)


STARTUP = 9  # trials drawn at random, or from the family, before TPE models them


def importance(trials: Sequence[Trial], space: Space) -> dict[str, float]:
    """Return the importance of each choice for the accuracy after the first rung: shares that add
    up to 1, greatest first, by PED-ANOVA (Watanabe et al. 2023) over the best quarter of the
    trials. Empty if there are too few trials.
    """
    tried = [trial for trial in trials if trial.rungs and not trial.refused]
    if len(tried) < FEWEST:
        return {}
    study = optuna.create_study(direction="maximize")
    for trial in tried:
        first = trial.rungs[min(trial.rungs)]
        study.add_trial(
            create_trial(value=first, params=trial.point, distributions=space.choices())
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of trials is reported elsewhere
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
        )
    return {name: share for name, share in found.items() if share > 0}


FEWEST = 16  # trials from which importance is estimated
