"""The ways a served model is asked: row by row, in batches, in bursts that the batcher merges, and for its labels.

Owns the requests and how their answers become one check; the judge is `validate.parity`. Called by
parity and reload, and by slo.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from deploy.errors import UsageError
from deploy.evidence import Judgement, ServedCheck, Verdict
from deploy.repository.layout import Version
from deploy.repository.manifest import Manifest
from deploy.repository.protobuf import parse_config
from deploy.serve.client import Client, ModelAddress, RequestFailed, Statistics
from deploy.validate.baseline import Baseline
from deploy.validate.cases import Case, make_cases
from deploy.validate.parity import Answer, judge
from deploy.validate.store import load_baseline

# A tiny model can answer before the next request comes; more bursts make a merge all but certain.
_BURSTS = 20
_BURST_REQUESTS = 64
_GROUPS = (1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A version as clients see it: its config as published, and the classes that its labels must name."""

    version: Version
    config: Any
    classes: tuple[str, ...] | None

    @property
    def address(self) -> ModelAddress:
        """The model version, with all its outputs wanted."""
        outputs = tuple(output.name for output in self.config.output)
        return ModelAddress(name=self.version.name, version=self.version.number, outputs=outputs)

    @property
    def merges(self) -> bool:
        """Whether the server may put several requests into one run."""
        return bool(self.config.HasField("dynamic_batching")) and self.config.max_batch_size > 1

    @property
    def labelled(self) -> int | None:
        """The output whose every element has a label; None without one, and for a class per pixel or token.

        The classification extension ranks all elements of a row, so only such an output can be asked about.
        """
        count = len(self.classes or ())
        for index, output in enumerate(self.config.output):
            # A dynamic dim is -1: how many elements a row has is then not known.
            fixed = min(output.dims) > 0 and math.prod(output.dims) == count
            if output.label_filename and (self.classes is None or fixed):
                return index
        return None

    def to_wire(self, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays under their names on the wire; a row that is a scalar has one element there."""
        pairs = zip(self.config.input, arrays, strict=True)
        return {entry.name: _widened(array) if entry.HasField("reshape") else array for entry, array in pairs}

    def from_wire(self, outputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the spec's order and ranks."""
        return [
            outputs[entry.name][..., 0] if entry.HasField("reshape") else outputs[entry.name]
            for entry in self.config.output
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """One model asked over one protocol."""

    model: ServedModel
    baseline: Baseline
    client: Client

    @classmethod
    def published(cls, version: Version, manifest: Manifest, client: Client) -> Self:
        """A published version, to be asked the rows of its evidence and judged by the budgets it was proven with."""
        model = ServedModel(version=version, config=parse_config(version.config.read_text()), classes=manifest.classes)
        return cls(model=model, baseline=load_baseline(version.evidence, manifest.spec), client=client)

    def where_possible(self) -> Iterator[Callable[[], ServedCheck]]:
        """The checks that not every model allows."""
        if self.model.merges:
            yield self.groups_at_once
        if self.model.labelled is not None:
            yield self.labels

    def one_by_one(self) -> ServedCheck:
        """The evidence's own calls, each row alone and in every batch size, one after the other."""
        cases = self._cases()
        return self._judged("one request at a time", (self._answer(case) for case in cases), cases)

    def few(self, count: int) -> ServedCheck:
        """The first `count` of those calls. Raises RequestFailed at the first that gets no answer."""
        cases = self._cases()[:count]
        answers = (
            Answer(case=case, outputs=self.model.from_wire(self.client.infer(self.model.address, self._inputs(case))))
            for case in cases
        )
        return self._judged("a few requests", answers, cases)

    def at_once(self) -> tuple[ServedCheck, Statistics]:
        """Single rows of all families in concurrent requests, until the counters show that some were merged."""
        cases = _interleaved([_rows(self.baseline, family) for family in self.baseline.rows])[:_BURST_REQUESTS]
        answers: list[Answer] = []
        before = self.client.statistics(self.model.address)
        for _ in range(_BURSTS if self.model.merges else 1):
            answers += self._burst(cases)
            counted = self.client.counted(self.model.address, since=before, requests=len(answers))
            if counted.executions < counted.inferences:
                break
        return self._judged("concurrent requests", answers, [answer.case for answer in answers]), counted

    def groups_at_once(self) -> ServedCheck:
        """Requests of one, two and three rows at once: merged, each must get its own rows back."""
        largest = self.model.config.max_batch_size
        groups = [_grouped(self.baseline, family, largest) for family in self._families]
        cases = _interleaved(groups)[:_BURST_REQUESTS]
        return self._judged("concurrent requests of several rows", self._burst(cases), cases)

    def labels(self) -> ServedCheck:
        """The classification extension: every index has its class's label, and the best is the reference's choice."""
        family = next(iter(self.baseline.rows))
        cases = _rows(self.baseline, family)
        problems = [problem for case in cases for problem in self._label_problems(case)]
        reason = problems[0] if problems else f"all {len(self.model.classes or ())} labels stand at their index"
        return ServedCheck(
            name="classification labels",
            protocol=self.client.protocol,
            requests=len(cases),
            rows=len(cases),
            judgement=Judgement(verdict=Verdict.FAIL if problems else Verdict.PASS, reason=reason),
        )

    @property
    def _families(self) -> list[str]:
        """The first family of each shape of rows: shapes are the server's matter, values were the artifact's parity's.

        The values of all families are asked about at once.
        """
        found: dict[tuple[tuple[int, ...], ...], str] = {}
        for pool in self.baseline.question.pools:
            found.setdefault(tuple(array.shape[1:] for array in pool.inputs), pool.family)
        return list(found.values())

    def _cases(self) -> Sequence[Case]:
        return make_cases(self.baseline.question.spec, [self.baseline.rows[family].pool for family in self._families])

    def _label_problems(self, case: Case) -> Iterator[str]:
        classes, index, address = self.model.classes, self.model.labelled, self.model.address
        assert index is not None, "asked of a model with labels only"
        if classes is None:
            raise UsageError(
                f"{self.model.version} has labels, but no classes were given to check them against",
                expected="the classes of its manifest",
            )
        asked = ModelAddress(name=address.name, version=address.version, outputs=(address.outputs[index],))
        try:
            row = self.client.classify(asked, self._inputs(case), count=len(classes))[0]
        except RequestFailed as error:
            yield error.found
            return
        if len(row) != len(classes):
            yield f"the server names {len(row)} classes; the checkpoint has {len(classes)}"
        for entry in row:
            expected = classes[entry.index]
            if entry.label != expected:
                yield f"the server names index {entry.index} {entry.label!r}; the checkpoint says {expected!r}"
        decided = _decision(self.baseline, case, index)
        if decided is not None and row[0].index != decided:
            yield f"the server's best class for {case.name!r} is {row[0].label!r}, not {classes[decided]!r}"

    def _judged(self, name: str, answers: Iterable[Answer], cases: Sequence[Case]) -> ServedCheck:
        return ServedCheck(
            name=name,
            protocol=self.client.protocol,
            requests=len(cases),
            rows=sum(len(case.rows) for case in cases),
            judgement=judge(self.baseline, answers, format=self.model.config.backend).judgement,
        )

    def _answer(self, case: Case) -> Answer:
        inputs = self._inputs(case)
        try:
            outputs = self.client.infer(self.model.address, inputs)
        except RequestFailed as error:
            return Answer(case=case, error=error.found)
        return Answer(case=case, outputs=self.model.from_wire(outputs))

    def _burst(self, cases: Sequence[Case]) -> list[Answer]:
        found = self.client.infer_all(self.model.address, [self._inputs(case) for case in cases])
        return [
            Answer(case=case, error=answer.found)
            if isinstance(answer, RequestFailed)
            else Answer(case=case, outputs=self.model.from_wire(answer))
            for case, answer in zip(cases, found, strict=True)
        ]

    def _inputs(self, case: Case) -> dict[str, np.ndarray]:
        return self.model.to_wire(self.baseline.rows[case.family].pool.take(case.rows))


def _widened(array: np.ndarray) -> np.ndarray:
    return array[..., np.newaxis]


def _rows(baseline: Baseline, family: str) -> list[Case]:
    """Each row of a family as a request of its own."""
    rows = range(baseline.rows[family].pool.rows)
    return [Case(name=f"{family}, row {row} among others", family=family, rows=(row,)) for row in rows]


def _grouped(baseline: Baseline, family: str, largest: int) -> list[Case]:
    """A family's rows in requests of one, two and three rows, none larger than the server takes."""
    count, start = baseline.rows[family].pool.rows, 0
    cases: list[Case] = []
    while start < count:
        size = min(_GROUPS[len(cases) % len(_GROUPS)], largest, count - start)
        rows = tuple(range(start, start + size))
        cases.append(Case(name=f"{family}, rows {start} to {start + size - 1} among others", family=family, rows=rows))
        start += size
    return cases


def _interleaved(families: Sequence[Sequence[Case]]) -> list[Case]:
    """The first of each family, then the second of each: neighbours in a merged batch come from different ones."""
    longest = max(len(cases) for cases in families)
    return [cases[position] for position in range(longest) for cases in families if position < len(cases)]


def _decision(baseline: Baseline, case: Case, index: int) -> int | None:
    """The reference's choice for a single row, None where its margin is within the budget."""
    output = baseline.question.spec.outputs[index]
    values = np.sort(baseline.rows[case.family].reference[index][case.rows[0]].ravel())
    margin = values[-1] - values[-2] if values.size > 1 else 0.0
    if not margin > baseline.budgets[output.name, case.family].allowed:
        return None
    return int(baseline.rows[case.family].reference[index][case.rows[0]].ravel().argmax())
