"""Settings are asked once each, kept on disk, and gone on from after any kind of end."""

from pathlib import Path

import pytest

from deploy.errors import UsageError
from deploy.slo.tune_records import Knob, Setting, TuneTrial
from deploy.tune.knobs import all_settings
from deploy.tune.search import Asked, Search, SearchPlan, set_aside

KNOBS = (
    Knob(name="instances", values=(1, 2, 4)),
    Knob(name="threads", values=(1, 2)),
    Knob(name="batch_limit", values=(1, 4, 8)),
    Knob(name="delay_us", values=(0, 500)),
)
FIRST = (
    Setting(batch_limit=8, delay_us=0, instances=1, threads=2),
    Setting(batch_limit=1, instances=2, threads=1),
)


def plan(*, seed: int = 0, bound: str = "p99 <= 15 ms", knobs: tuple[Knob, ...] = KNOBS) -> SearchPlan:
    return SearchPlan(knobs=knobs, first=FIRST, key={"version": "abc", "bound": bound}, seed=seed)


def worth(setting: Setting) -> float:
    return 10.0 * (setting.instances or 0) + 5.0 * (setting.threads == 1) + (setting.batch_limit or 0)


def tried(asked: Asked, score: float | None = None) -> TuneTrial:
    value = worth(asked.setting) if score is None else score
    return TuneTrial(
        number=asked.number, setting=asked.setting, status="measured", rate=value, score=value, reason="", seconds=1.0
    )


def go(search: Search, count: int) -> list[Setting]:
    found = []
    for _ in range(count):
        asked = search.ask()
        search.tell(asked, tried(asked))
        found.append(asked.setting)
    return found


def test_the_first_settings_come_first_and_every_setting_once(tmp_path: Path) -> None:
    space = list(all_settings(KNOBS))
    with Search(plan(), tmp_path / "a.journal") as search:
        found = go(search, len(space))
        assert found[:2] == list(FIRST)
        assert set(found) == set(space)
        assert len(found) == len(space)
        assert search.exhausted
        assert [trial.number for trial in search.trials] == list(range(len(space)))


def test_the_same_seed_asks_the_same() -> None:
    with Search(plan(seed=3), None) as one, Search(plan(seed=3), None) as other, Search(plan(seed=4), None) as third:
        found = go(one, 12)
        assert found == go(other, 12)
        assert found != go(third, 12)


def test_a_search_that_ended_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path) as search:
        before = go(search, 5)
    with Search(plan(), path) as search:
        assert [trial.setting for trial in search.trials] == before
        after = go(search, 4)
        assert not set(after) & set(before)
        assert [trial.number for trial in search.trials] == list(range(9))


def test_the_trial_that_was_running_is_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path) as search:
        go(search, 3)
        lost = search.ask().setting
    with Search(plan(), path) as search:
        assert search.ask().setting == lost


def test_half_a_line_of_a_search_that_was_killed_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path) as search:
        before = go(search, 3)
    with path.open("ab") as stream:
        stream.write(b'{"op_code":5,"wor')
    Path(f"{path}.lock").symlink_to(path)
    with Search(plan(), path) as search:
        go(search, 1)
    with Search(plan(), path) as search:
        assert [trial.setting for trial in search.trials][:3] == before
        assert len(search.trials) == 4


def test_the_storage_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path) as search:
        go(search, 1)
    with pytest.raises(UsageError, match="another bound"), Search(plan(bound="p99 <= 20 ms"), path):
        pass
    with Search(plan(), path) as search:
        assert len(search.trials) == 1, "the refused search left it free and unchanged"


def test_two_searches_do_not_share_a_storage(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path), pytest.raises(UsageError, match="another search is using"), Search(plan(), path):
        pass


def test_a_search_that_is_under_way_is_not_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "trials.journal"
    with Search(plan(), path), pytest.raises(UsageError, match="another search is using"):
        set_aside(path)
    set_aside(path)
    assert not path.exists()
    assert path.with_suffix(".before").exists()
    set_aside(path)


def test_a_file_that_is_no_storage_is_refused_unharmed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nwithout end")
    with pytest.raises(UsageError, match="is no storage"), Search(plan(), path):
        pass
    assert path.read_text() == "my notes\nwithout end"


@pytest.mark.parametrize(
    "rest",
    [
        b'{"op_code":99,"worker_id":"x"}\n',
        b"no JSON at all\n",
        b'{"op_code":2,"worker_id":"x","study_id":0,"user_attr":{"key":"{"}}\n',
    ],
    ids=["unknown", "no-json", "bad-key"],
)
def test_a_storage_that_was_damaged_is_refused_and_left_free(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "a.journal"
    with Search(plan(), path) as search:
        go(search, 1)
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    with pytest.raises(UsageError, match="cannot be read to its end"), Search(plan(), path):
        pass
    path.write_bytes(whole)
    with Search(plan(), path) as search:
        assert len(search.trials) == 1


def test_a_storage_where_nothing_can_be_written_is_refused() -> None:
    path = Path("/proc/a.journal")
    with pytest.raises(UsageError, match="cannot be written"), Search(plan(), path):
        pass


def test_the_sampler_finds_the_best_sooner_than_chance() -> None:
    best = max(map(worth, all_settings(KNOBS)))
    hits = 0
    for seed in range(10):
        with Search(plan(seed=seed), None) as search:
            hits += any(worth(setting) == best for setting in go(search, 10))
    # 30 settings, one of which is the best: ten draws without repeats find it in a third of the cases.
    assert hits >= 6
