"""The whole job on a test bed of a known response: what is published, what is kept, what is refused."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.errors import ExitCode, UnfinishedError, UsageError
from deploy.repository.attest import attestations
from deploy.repository.find import find_model, find_version, read_manifest
from deploy.repository.layout import Version, promoted_version
from deploy.repository.manifest import verify_files
from deploy.repository.protobuf import parse_config
from deploy.repository.publish import PublishOptions
from deploy.serve.engines import Engine
from deploy.slo.records import Bound
from deploy.slo.tune_records import Probe, Setting, TuneEvidence, TuneTrial
from deploy.tune.bed import BedPlan
from deploy.tune.knobs import own_setting
from deploy.tune.left import left_of_tuning
from deploy.tune.publish import TUNING_FILE, Successor, publish_tuned
from deploy.tune.request import TuneRequest, TuneResult
from deploy.tune.run import SearchInterrupted, tune
from tests.repository.samples import CLASSES, Sample, leftovers, put, state
from tests.tune.beds import FakeBed, capacity, put_version

NO_ENGINE = Engine(kind="local", release="24.10", server_version="2.51.0", executable=Path("/nowhere"))
OWN = Setting(batch_limit=8, delay_us=0, instances=1, threads=2)


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """A published version, a cache of its own, and no server to prove the next one with: that is `test_served`'s."""
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))
    real: Callable[..., Any] = publish_tuned

    def unserved(successor: Successor, **rest: Any) -> Any:
        return real(replace(successor, engine=None), **rest)

    monkeypatch.setattr("deploy.tune.run.publish_tuned", unserved)
    return put_version(tmp_path / "work" / "models")


def asked(version: Version, **changes: Any) -> TuneRequest:
    request = TuneRequest(
        repository=version.repository,
        reference=version.name,
        bound=Bound(kind="latency", q=0.99, limit=16.0),
        engine=NO_ENGINE,
        trials=12,
        cores=2,
        command=("deployctl", "tune", "models", "pets"),
    )
    return replace(request, **changes)


def done(version: Version, bed: FakeBed, **changes: Any) -> TuneResult:
    return tune(asked(version, **changes), make_bed=lambda _: bed)


def test_the_winner_becomes_the_next_version(version: Version) -> None:
    before = state(version.model_folder)
    found = done(version, FakeBed())
    assert found.exit_code is ExitCode.OK
    assert found.evidence.outcome == "better"
    assert found.published is not None
    tuned = found.published.version
    assert (tuned.number, found.published.promoted) == (2, False)
    assert own_setting(parse_config(tuned.config.read_text())) == found.evidence.chosen
    after = state(version.model_folder)
    assert {name: after[name] for name in before} == before, "the old version and the promotion are as they were"
    assert leftovers(version.repository) == []


def test_the_next_package_is_told_what_it_does_not_have_of_a_tuning(version: Version) -> None:
    assert left_of_tuning(version) == ""
    found = done(version, FakeBed())
    assert found.published is not None
    tuned = found.published.version
    assert left_of_tuning(tuned) == ""
    packaged = put_version(version.repository)
    said = left_of_tuning(packaged)
    assert f"pets:2 was tuned for p99 <= 16 ms to {found.evidence.chosen}; pets:3 has {OWN}" in said
    assert "pets:3 --p99-ms 16` finds what suits it" in said
    (tuned.evidence / TUNING_FILE).write_text("{")
    assert left_of_tuning(packaged) == ""


def test_the_artifact_is_linked_and_the_evidence_is_a_copy(version: Version) -> None:
    found = done(version, FakeBed(), trials=6)
    assert found.published is not None
    tuned = found.published.version
    manifest = verify_files(tuned.folder)
    for name in ("model.onnx", "labels.txt"):
        assert (version.folder / name).samefile(tuned.folder / name)
    for name in ("parity.json", "samples.npz", "samples.json"):
        assert (tuned.evidence / name).read_bytes() == (version.evidence / name).read_bytes()
        assert not (version.evidence / name).samefile(tuned.evidence / name)
    old = read_manifest(version)
    digests = {entry.path: entry.sha256 for entry in manifest.files}
    assert digests["model.onnx"] == {entry.path: entry.sha256 for entry in old.files}["model.onnx"]
    assert TuneEvidence.read(tuned.evidence / "tuning.json").chosen == found.evidence.chosen
    assert manifest.command == ("deployctl", "tune", "models", "pets")
    assert (manifest.spec, manifest.classes, manifest.checkpoint) == (old.spec, CLASSES, old.checkpoint)
    assert b"pets" in (tuned.evidence / "report.html").read_bytes()


def test_the_search_is_kept_as_an_attestation_of_the_version_that_was_searched(version: Version) -> None:
    found = done(version, FakeBed(), trials=6)
    assert found.attestation is not None
    assert [one.kind for one in attestations(version)] == ["tune"]
    kept = TuneEvidence.read(found.attestation)
    assert kept == found.evidence
    assert kept.space == 114
    assert [trial.number for trial in kept.trials] == list(range(6))
    assert kept.trials[0].setting == kept.own == OWN


def test_a_promotion_is_asked_for(version: Version) -> None:
    found = done(version, FakeBed(), trials=6, promote=True)
    assert found.published is not None
    assert found.published.promoted
    assert find_model(version.repository, version.name).promoted == 2


def test_a_dry_run_shows_the_change_and_leaves_no_trace(version: Version) -> None:
    before = sorted(version.repository.rglob("*"))
    found = done(version, FakeBed(), trials=6, dry_run=True)
    assert found.evidence.outcome == "better"
    assert "-  count: 1" in found.difference
    assert (found.published, found.attestation) == (None, None)
    assert sorted(version.repository.rglob("*")) == before


def test_where_the_own_setting_is_the_best_the_config_stays(version: Version) -> None:
    bed = FakeBed(capacity=lambda setting: 200.0 if setting == OWN else 100.0)
    found = done(version, bed)
    assert (found.exit_code, found.evidence.outcome) == (ExitCode.OK, "stays")
    assert "the config stays" in found.evidence.judgement.reason
    assert (found.published, found.difference, found.evidence.confirmation) == (None, "", None)
    assert len(attestations(version)) == 1, "that is worth knowing too"


def test_a_lucky_winner_is_found_out(version: Version) -> None:
    """Every setting is the same, and one was lucky once: beside the own setting it is not better."""
    loads: list[Setting] = []

    def lucky(setting: Setting) -> float:
        return 130.0 if len(set(loads)) == 3 and loads.count(setting) == 1 and len(loads) == 3 else 100.0

    found = done(version, FakeBed(capacity=lucky, on_load=loads.append), trials=5)
    best = found.evidence.trials[found.evidence.best or 0]
    assert best.number == 2
    assert (best.rate or 0.0) > 120.0
    assert found.evidence.outcome == "stays"
    assert found.evidence.confirmation is not None
    assert not found.evidence.confirmation.better
    assert found.published is None


def test_no_rate_at_all_is_a_no(version: Version) -> None:
    class Slow(FakeBed):
        def pace(self) -> float:
            return 100.0

    found = done(version, Slow(capacity=lambda _: 0.001), trials=3)
    assert (found.exit_code, found.evidence.outcome) == (ExitCode.NO, "none")
    assert found.evidence.judgement.reason.startswith("no configuration keeps p99 <= 16 ms")
    assert found.published is None


class TooSlow(FakeBed):
    """Takes 20 ms and more at any rate, the quickest with two threads: at least half of the queries are over."""

    def pace(self) -> float:
        return 50.0

    def probe(self, rate: float) -> Probe:
        setting = self.loaded[-1]
        self.probed.append((setting, rate))
        p99 = 60.0 if rate > 30 else 20.0 if setting.threads == 2 else 30.0
        return Probe(
            rate=rate, kept=False, reason="too slow", queries=int(10 * rate) + 1, over=int(10 * rate) + 1, p99=p99
        )


def test_a_search_for_what_no_setting_can_keep_ends_early_and_says_what_can_be_asked(version: Version) -> None:
    bed = TooSlow()
    found = done(version, bed, trials=40)
    assert (found.exit_code, found.evidence.outcome) == (ExitCode.NO, "none")
    assert len(found.evidence.trials) <= 5, "the own setting and the corners hold each number of threads unmerged"
    assert "the lowest p99 seen was 20 ms" in found.evidence.judgement.reason
    assert "2 threads each" in found.evidence.judgement.reason
    assert any("the search ended after" in remark and "of 40 trials" in remark for remark in found.evidence.remarks)
    first = found.evidence.trials[0].probes
    assert all(len(trial.probes) < len(first) for trial in found.evidence.trials[1:]), "the others cost less"


@pytest.mark.parametrize("pace", [2.0, 5.0, 20.0])
def test_it_ends_early_for_a_slow_version_too_whose_probes_have_few_queries(version: Version, pace: float) -> None:
    class Slow(TooSlow):
        def pace(self) -> float:
            return pace

        def probe(self, rate: float) -> Probe:
            count = max(1, int(4.0 * rate))
            return super().probe(rate).model_copy(update={"queries": count, "over": count})

    bed = Slow()
    assert len(done(version, bed, trials=40, probe_seconds=4.0).evidence.trials) <= 5
    assert min(rate for _, rate in bed.probed) >= 0.5, "a probe of 4 s has two queries"


def test_a_number_of_threads_that_is_no_corner_is_tried_before_a_search_ends(version: Version) -> None:
    class FourDo(TooSlow):
        def probe(self, rate: float) -> Probe:
            found = super().probe(rate)
            kept = self.loaded[-1].threads == 4 and rate < 30
            return found.model_copy(update={"kept": True, "over": 0}) if kept else found

    assert done(version, FourDo(), trials=40, cores=8, dry_run=True).evidence.outcome != "none"
    none = done(version, TooSlow(), trials=40, cores=8, dry_run=True).evidence
    assert {trial.setting.threads for trial in none.trials if trial.setting.batch_limit == 1} == {1, 2, 4, 8}
    assert len(none.trials) <= 7


def test_a_near_miss_does_not_end_a_search(version: Version) -> None:
    class NearMiss(TooSlow):
        def probe(self, rate: float) -> Probe:
            found = super().probe(rate)
            return found.model_copy(update={"over": found.queries // 3})

    assert len(done(version, NearMiss(), trials=12).evidence.trials) == 12


def test_a_refused_setting_loses_only_its_trial(version: Version) -> None:
    found = done(version, FakeBed(refused=lambda setting: setting.instances == 4))
    refused = [trial for trial in found.evidence.trials if trial.setting.instances == 4]
    assert {trial.status for trial in refused} == {"failed"}
    assert found.evidence.outcome == "better"
    assert any("trials failed" in remark for remark in found.evidence.remarks)


def test_a_server_that_dies_is_started_again(version: Version) -> None:
    bed = FakeBed(deadly=lambda setting: setting.batch_limit == 1)
    found = done(version, bed)
    died = [trial for trial in found.evidence.trials if trial.status == "failed"]
    assert died
    assert bed.revived == len(died)
    assert found.evidence.outcome == "better"


def test_a_winner_that_takes_the_server_down_when_it_is_confirmed_is_none(version: Version) -> None:
    def second_time(setting: Setting) -> bool:
        return setting != OWN and len(bed.loaded) > 6

    bed = FakeBed(deadly=second_time)
    found = done(version, bed, trials=6)
    assert found.evidence.outcome == "stays"
    assert "the server ended" in found.evidence.judgement.reason


def test_nothing_but_failures_is_unfinished(version: Version) -> None:
    with pytest.raises(UnfinishedError, match="no trial could be measured: the server refused"):
        done(version, FakeBed(refused=lambda _: True), trials=3)


def test_a_client_that_is_the_limit_is_said_and_never_called_the_servers(version: Version) -> None:
    found = done(version, FakeBed(client_most=120.0))
    assert any(trial.client_limited for trial in found.evidence.trials)
    assert any("client was the limit" in remark for remark in found.evidence.remarks)
    assert found.evidence.outcome == "stays"


def test_an_interrupted_search_keeps_its_trials_and_is_gone_on_from(version: Version, tmp_path: Path) -> None:
    storage = tmp_path / "trials.journal"
    loads = 0

    def interrupt(_: Setting) -> None:
        nonlocal loads
        loads += 1
        if loads == 4:
            raise KeyboardInterrupt

    with pytest.raises(SearchInterrupted, match=r"3 of 8 trials are kept in .*--resume"):
        done(version, FakeBed(on_load=interrupt), trials=8, storage=storage)
    with pytest.raises(UsageError, match="exists"):
        done(version, FakeBed(), trials=8, storage=storage)
    bed = FakeBed()
    found = done(version, bed, trials=8, storage=storage, resume=True)
    assert len(found.evidence.trials) == 8
    first = {trial.setting for trial in found.evidence.trials[:3]}
    confirmed = {OWN, found.evidence.trials[found.evidence.best or 0].setting}
    assert not (first - confirmed) & set(bed.loaded), "what was measured is not measured again"


def test_what_another_promoted_during_the_search_is_not_replaced_by_an_older_artifact(version: Version) -> None:
    def meanwhile(_: Setting) -> None:
        if len(bed.loaded) == 2:
            put(version.repository, Sample(weights=b"finer"), options=PublishOptions(promote=True))

    bed = FakeBed(on_load=meanwhile)
    found = done(version, bed, promote=True)
    assert promoted_version(version.model_folder) == 2
    assert found.exit_code is ExitCode.UNFINISHED
    assert found.problem is not None
    assert found.problem.found == "pets:3 is published and stays, but version 2 was promoted meanwhile"
    assert found.evidence.outcome == "better" and found.attestation is not None, "what was found is not lost"


def test_what_cannot_be_published_is_shown_and_kept_all_the_same(
    version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(successor: Successor, **rest: Any) -> Any:
        raise UnfinishedError("no space left")

    monkeypatch.setattr("deploy.tune.run.publish_tuned", full)
    found = done(version, FakeBed())
    assert (found.exit_code, found.published) == (ExitCode.UNFINISHED, None)
    assert found.evidence.outcome == "better" and found.attestation is not None
    assert found.problem is not None and found.problem.found == "no space left"


def test_the_storage_in_the_cache_serves_a_resume_and_only_that(version: Version) -> None:
    storage = done(version, FakeBed(), trials=3, dry_run=True).storage
    assert storage.is_relative_to(os.environ["DEPLOYCTL_CACHE"])
    bed = FakeBed()
    done(version, bed, trials=3, resume=True, dry_run=True)
    anew = FakeBed()
    done(version, anew, trials=3, dry_run=True)
    assert len(anew.probed) > len(bed.probed), "without --resume all is measured anew"


@pytest.mark.parametrize("changes", [{"bound": Bound(kind="latency", q=0.99, limit=1e300)}, {"probe_seconds": 1e9}])
def test_a_search_that_no_probe_could_serve_is_refused(version: Version, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"probes of .* for p99"):
        asked(version, **changes)


def test_the_time_ends_a_search_that_has_trials_left(version: Version) -> None:
    bed = FakeBed(on_load=lambda _: time.sleep(0.02))
    found = done(version, bed, trials=100, timeout=0.1, dry_run=True)
    assert 1 <= len(found.evidence.trials) < 100


def test_what_could_not_be_published_is_refused_before_any_trial(version: Version) -> None:
    def never(_: BedPlan) -> FakeBed:
        raise AssertionError("a bed was made")

    (version.folder / "model.onnx").chmod(0o644)
    (version.folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        tune(asked(version), make_bed=never)
    bare = put_version(version.repository, Sample(name="bare"), proven=False)
    with pytest.raises(UsageError, match="keeps no samples"):
        tune(asked(bare), make_bed=never)
    with pytest.raises(UsageError, match="has no version 7"):
        tune(asked(version, reference="pets:7"), make_bed=never)
    with pytest.raises(UsageError, match="nothing to promote"):
        asked(version, dry_run=True, promote=True)


def test_a_version_that_another_published_meanwhile_gets_its_number(version: Version) -> None:
    first = done(version, FakeBed(), trials=5)
    second = done(version, FakeBed(), trials=5)
    assert first.published is not None
    assert second.published is not None
    assert second.published.version.number == 3
    assert find_version(version.repository, "pets:3").config.exists()


def test_the_response_has_its_best_where_the_tests_say() -> None:
    best = Setting(batch_limit=4, delay_us=500, instances=2, threads=1)
    assert capacity(best) > capacity(OWN)


def test_a_trial_survives_its_json() -> None:
    trial = TuneTrial(number=0, setting=OWN, status="failed", rate=None, score=0.0, reason="no", seconds=1.0)
    assert TuneTrial.model_validate_json(trial.model_dump_json()) == trial
