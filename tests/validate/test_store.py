"""The evidence's own samples: a version can be judged again from them, without the checkpoint."""

from pathlib import Path

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.validate.parity import Answer, judge
from deploy.validate.store import ARRAYS, RECORD, load_baseline, save_baseline
from tests.validate.test_parity import Arrays, baseline, calls, exact, off_by, single, spec


def test_a_stored_baseline_judges_as_the_one_it_came_from(tmp_path: Path) -> None:
    first = baseline()
    save_baseline(first, tmp_path)
    again = load_baseline(tmp_path, spec())
    assert again.budgets == first.budgets
    assert again.question.cases == first.question.cases
    answers = [Answer(case=case, outputs=outputs) for case, outputs in calls(again.question, single)]
    assert judge(again, answers, format="served").judgement.passed
    wrong = [Answer(case=case, outputs=outputs) for case, outputs in calls(again.question, off_by(1e-3))]
    assert judge(again, wrong, format="served").failures[0].check == "error"


def test_a_stored_baseline_is_bounded_and_keeps_a_row_of_each_family(tmp_path: Path) -> None:
    save_baseline(baseline(), tmp_path, limit=1)
    again = load_baseline(tmp_path, spec())
    assert {family: rows.pool.rows for family, rows in again.rows.items()} == {
        "normal": 1, "image": 1, "constant": 1, "large": 1,
    }  # fmt: skip


def test_the_same_baseline_is_stored_in_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_baseline(baseline(), tmp_path / name)
    for name in (ARRAYS, RECORD):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_rows_in_which_eager_overflows_are_left_out(tmp_path: Path) -> None:
    def overflowing(x: np.ndarray) -> Arrays:
        out = single(x)[0]
        out[abs(x).max(axis=1) > 20] = np.inf
        return [out]

    save_baseline(baseline(reference=exact, eager=overflowing), tmp_path)
    assert set(load_baseline(tmp_path, spec()).rows) == {"normal", "image", "constant"}


@pytest.mark.parametrize("name", [ARRAYS, RECORD])
def test_a_missing_or_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    save_baseline(baseline(), tmp_path)
    (tmp_path / name).write_bytes(b"no")
    with pytest.raises(UsageError, match=name):
        load_baseline(tmp_path, spec())
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=name):
        load_baseline(tmp_path, spec())
