"""`hydra/sweeper=optuna`: a sweep whose jobs Optuna chooses one after the other, by the results of those before them.

The study is not kept in a file of its own: sweep.json and the jobs' summaries are all that it knows, so a search that
goes on chooses what one that never stopped would choose.

Why not hydra-optuna-sweeper (1.3.0): it wants Optuna < 3, with scipy and cmaes. By its code, a second start with the
same database asks for all its trials again, and leaves jobs that were interrupted as they are.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from itertools import islice, product
from math import isfinite, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from atlas.config import require
from atlas.config.keys import flat, override_name
from atlas.runs.folder import say
from atlas.runs.summary import RunSummary
from atlas.sweeps.launchers import JOBLIB, launcher_name
from atlas.sweeps.outcome import JobOutcome, left_over, outcomes
from atlas.sweeps.refusal import refuse_useless_values
from atlas.sweeps.resumption import KEY
from atlas.sweeps.stop import StopSign
from atlas.sweeps.sweep_record import SweepRecord
from atlas.sweeps.sweeper import ResumableSweeper, refuse_other_jobs

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

DIRECTIONS = ("minimize", "maximize")
MOST_CORNERS = 64  # combinations of ends and choices that are checked before the first job
Space = dict[str, "BaseDistribution"]


class SearchSweeper(ResumableSweeper):
    """`trials` jobs that make the number `metric` of summary.json small or large, as `direction` says."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        trials: int,
        metric: str,
        direction: str,
        seed: int,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.trials, self.metric, self.direction, self.seed = trials, metric, direction, seed
        self._space: Space = {}
        self._fixed: list[str] = []

    def _plan(self, arguments: Sequence[str], known: SweepRecord | None, folder: Path) -> SweepRecord:
        """The jobs that were chosen already. Raises `ConfigError` for a search that cannot be."""
        assert self.config is not None
        assert self.hydra_context is not None
        require(isinstance(self.trials, int) and self.trials >= 1, "hydra.sweeper.trials", self.trials, ">= 1")
        require(self.direction in DIRECTIONS, "hydra.sweeper.direction", self.direction, f"one of {list(DIRECTIONS)}")
        seeds = self.config.sweep.seeds
        require(seeds == 1, "sweep.seeds", seeds, "left out with hydra/sweeper=optuna")
        wanted = [text for text in [*self._parse_config(), *arguments] if override_name(text) != KEY]
        parsed = OverridesParser.create(config_loader=self.hydra_context.config_loader).parse_overrides(wanted)
        swept = {override.get_key_element(): override for override in parsed if override.is_sweep_override()}
        require(bool(swept), "hydra/sweeper", "optuna", "given a setting to search, as optim.lr=interval(1e-4,1e-2)")
        self._space = {key: _distribution(key, override) for key, override in swept.items()}
        self._fixed = [
            f"{override.get_key_element()}={override.get_value_element_as_str()}"
            for override in parsed
            if not override.is_sweep_override()
        ]
        self._refuse_useless_values()
        chosen = [self._compose_job(job.number, job.overrides) for job in known.jobs] if known else []
        record = self._record(chosen)
        if known:
            refuse_other_jobs(record, known, folder)
        return record

    def _refuse_useless_values(self) -> None:
        """Raise `ConfigError` for a fixed setting that no job can have, an end or a choice of a searched one, and for a
        metric that no run has."""
        assert self.config is not None
        known = self.metric.partition("/")[0] in {field.name for field in fields(RunSummary)}
        allowed = "a number of summary.json, such as validation_loss or niah/recall/accuracy"
        require(known, "hydra.sweeper.metric", self.metric, allowed)
        ends = [[f"{key}={value}" for value in _ends(space)] for key, space in self._space.items()]
        corners = [[*self._fixed, *corner] for corner in islice(product(*ends), MOST_CORNERS)]
        # Of some corners alone a value may be refused for another one that stands beside it in all of them.
        tried = corners if prod(map(len, ends)) <= MOST_CORNERS else corners[:1]
        settings = [self._composed(number, overrides) for number, overrides in enumerate(tried)]
        refuse_useless_values(tried, settings, launcher_name(self.config.hydra))

    def _work(self, folder: Path, record: SweepRecord, resumed: bool) -> bool:
        jobs, interrupted, stop = left_over(folder, record), False, StopSign(folder)
        stop.take_down()
        while True:
            if jobs:
                interrupted = self._launch(folder, record, jobs)
            chosen = [] if interrupted or stop.reason is not None else self._choose(outcomes(folder, record))
            if not chosen:
                break
            jobs = [self._compose_job(number, overrides) for number, overrides in enumerate(chosen, len(record.jobs))]
            record = replace(record, jobs=(*record.jobs, *jobs))
            self._require_own_folders(record.jobs)
            record.write(folder)
        if len(record.jobs) < self.trials:
            say(f"{len(record.jobs)} of {self.trials} trials were chosen; {KEY}={folder} goes on")
        return interrupted

    def _choose(self, ended: Sequence[JobOutcome]) -> list[list[str]]:
        """The overrides of the next jobs, by the outcomes of those before them; none once there are enough."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        count = min(self._at_a_time(), self.trials - len(ended))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions before 5 call the constant liar experimental
            sampler = optuna.samplers.TPESampler(seed=self.seed + len(ended), constant_liar=True)
            study = optuna.create_study(direction=self.direction, sampler=sampler)
            study.add_trials([self._trial(outcome) for outcome in ended])
            asked = [study.ask(self._space) for _ in range(count)]
        return [[*self._fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in asked]

    def _at_a_time(self) -> int:
        assert self.config is not None
        if self.max_batch_size:
            return self.max_batch_size
        hydra = self.config.hydra
        return int(hydra.launcher.n_jobs) if launcher_name(hydra) == JOBLIB else 1

    def _trial(self, outcome: JobOutcome) -> FrozenTrial:
        """A job as Optuna sees it; one without the number counts as failed."""
        from optuna.trial import TrialState, create_trial

        given = dict(override.split("=", 1) for override in outcome.job.overrides)
        params = {key: _value(space, given[key]) for key, space in self._space.items()}
        found = flat(asdict(outcome.summary), separator="/").get(self.metric) if outcome.summary else None
        value = float(found) if outcome.completed and isinstance(found, int | float) and isfinite(found) else None
        if outcome.completed and value is None:
            say(f"job {outcome.job.number} has no number {self.metric} in its summary.json")
        state = TrialState.FAIL if value is None else TrialState.COMPLETE
        return create_trial(params=params, distributions=self._space, value=value, state=state)


def _distribution(key: str, override: Override) -> BaseDistribution:
    """`interval(a,b)`, with the tag `log` on a logarithmic scale, `range(a,b)`, or values to choose from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept = override.value()
    if not isinstance(swept, IntervalSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    low, high, log = swept.start, swept.end, "log" in swept.tags
    assert low is not None
    assert high is not None
    allowed = "interval(LOW,HIGH) with LOW < HIGH" + (", both > 0 with tag(log,...)" if log else "")
    value = (override.input_line or "").partition("=")[2]
    require(low < high and (low > 0 or not log), key, value, allowed)
    whole = all(isinstance(end, int) for end in (low, high))
    return IntDistribution(int(low), int(high), log=log) if whole else FloatDistribution(low, high, log=log)


def _ends(space: BaseDistribution) -> list[Any]:
    """Both ends of an interval, or all choices."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return list(space.choices)
    assert isinstance(space, IntDistribution | FloatDistribution)
    return [space.low, space.high]


def _value(space: BaseDistribution, text: str) -> Any:
    """The parameter that an override gives."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    if isinstance(space, CategoricalDistribution):
        return text
    return int(text) if isinstance(space, IntDistribution) else float(text)
