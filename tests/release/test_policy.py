"""What an environment demands: each demand fires, all that is unmet is named at once, and what held is recorded."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli import promote as command
from deploy.errors import ExitCode, UnfinishedError, UsageError
from deploy.evidence import Judgement, ServedEvidence, Verdict
from deploy.files import sha256_file
from deploy.latency_evidence import BenchEvidence, LatencyEvidence
from deploy.release.demand import Candidate, Demand
from deploy.release.policy import demands
from deploy.release.policy_file import PromotionPolicy, read_environment
from deploy.release.promotion import promote_under
from deploy.release.signatures import Signatures
from deploy.repository.attest import attest
from deploy.repository.find import find_version
from deploy.repository.history import Approval, PromotionHistory, read_history
from deploy.repository.layout import Version, promoted_version
from deploy.repository.manifest import Manifest, Verdicts, file_entries, version_digest
from deploy.repository.promotion import promote
from deploy.slo.records import Bound, BoundResult, ClientSide, SloEvidence
from deploy.validate.difference_records import DiffEvidence, Gate, SizeDifference
from tests.markdown import ROOT
from tests.release.conftest import SignedModel
from tests.repository.ensembles import WHOLE, put_ensemble
from tests.repository.samples import FAIL, PASS, UNDECIDED, Sample, put


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for weights in (b"one", b"two", b"three"):
        put(tmp_path / "models", Sample(weights=weights))
    return tmp_path / "models"


@pytest.fixture
def second(repository: Path) -> Version:
    return find_version(repository, "pets:2")


def slo(
    version: Version, *, rate: float = 200.0, p99: float = 15.0, judgement: Judgement = PASS, confidence: float = 0.99
) -> SloEvidence:
    bound = Bound(kind="latency", q=0.99, limit=p99)
    result = BoundResult(bound=bound, judgement=judgement, n=1000, over=0, allowed=0.01, low=0.0, high=0.005)
    client = ClientSide(
        protocol="grpc", offered_rate=rate, sent_rate=rate, lag_p50=0, lag_p99=0, lag_max=0, stalled_seconds=0,
        cpu_seconds=1, kept_schedule=True, remark="",
    )  # fmt: skip
    return SloEvidence(
        model="pets", version=version.number, version_digest=version_digest(version.folder), url="localhost:8001",
        rate=rate, seed=0, samples="its own", seconds_asked=30, seconds_taken=30, started="now", judgement=judgement,
        bounds=(result,), queries=1000, warm_up_queries=0, looks=1, confidence=confidence, deadline=1, quantiles=(),
        distribution=(), timeline=(), errors={}, client=client, server=None, method="stated", load_generator="stated",
    )  # fmt: skip


def difference(
    version: Version, *, against: int = 1, gates: dict[str, float] | None = None, judgement: Judgement = PASS
) -> DiffEvidence:
    asked = {"max_flips": 0.02} if gates is None else gates
    other = Version(repository=version.repository, name=version.name, number=against)
    return DiffEvidence(
        version=str(version), digest=version_digest(version.folder), compared=str(other),
        compared_digest=version_digest(other.folder), created="now", command=(), judgement=judgement,
        gates=tuple(Gate(name=name, limit=limit, judgement=judgement) for name, limit in asked.items()), changes=(),
        size=SizeDifference(artifact_before=1, artifact_after=1, total_before=1, total_after=1), answers=None,
        latency=None,
    )  # fmt: skip


def bench(version: Version, *, slowdown: float | None = 1.1, judgement: Judgement = PASS) -> BenchEvidence:
    other = Version(repository=version.repository, name=version.name, number=1)
    latency = LatencyEvidence(
        judgement=judgement, device="cpu", threads=1, method="stated", confidence=0.95, cells=(), ratios=(), starts=(),
        winner=None, winner_rule="",
    )  # fmt: skip
    return BenchEvidence(
        version=str(version), digest=version_digest(version.folder), compared=str(other),
        compared_digest=version_digest(other.folder), checkpoint=None, max_slowdown=slowdown, created="now",
        command=(), latency=latency,
    )  # fmt: skip


Made = Callable[..., SloEvidence | DiffEvidence | BenchEvidence]
MAKERS: dict[str, Callable[..., SloEvidence | DiffEvidence | BenchEvidence]] = {
    "slo": slo,
    "diff": difference,
    "bench": bench,
}


def invalid(version: Version) -> SloEvidence:
    return slo(version).model_copy(update={"invalid": "it lagged"})


def loose(version: Version) -> DiffEvidence:
    return difference(version, gates={"max_flips": 0.5})


def unsigned(version: Version) -> Signatures:
    return Signatures(judgement=Judgement(verdict=Verdict.FAIL, reason=f"{version} is not signed"))


def demanded(version: Version, *, later: timedelta = timedelta(0), **policy: object) -> dict[str, Demand]:
    """The demands of a policy by name, as they stand `later`."""
    candidate = Candidate.of(version, Manifest.read(version.manifest), check_signature=unsigned)
    moment = replace(candidate, now=datetime.now(UTC) + later)
    return {one.name: one for one in demands(PromotionPolicy.model_validate(policy), moment)}


def unmet(found: dict[str, Demand]) -> dict[str, str]:
    return {name: one.judgement.reason for name, one in found.items() if not one.judgement.passed}


def edit_manifest(version: Version, **changes: object) -> None:
    manifest = Manifest.read(version.manifest).model_copy(update=changes)
    manifest.model_copy(update={"files": file_entries(version.folder)}).write(version.manifest)


def test_every_demand_that_is_not_met_is_named_with_its_command(second: Version) -> None:
    found = demanded(
        second, require=("slo", "diff", "bench", "signature"), require_native=True, architecture="confirmed",
        targets=("somewhere",), max_p99_ms=15, min_rate=200, max_flips=0.02, public_key="release.pub",
    )  # fmt: skip
    assert set(unmet(found)) == {"slo", "diff", "bench", "signature", "native", "architecture", "target"}
    repository = second.repository
    assert found["slo"].command == (
        f"deployctl slo pets:2 --url HOST:PORT --rate 200 --p99-ms 15 --repository {repository}"
    )
    assert found["diff"].command == f"deployctl diff {repository} pets promoted 2 --max-flips 0.02"
    assert found["bench"].command == f"deployctl bench {repository} pets:2 --compare 1 --max-slowdown X"
    assert found["signature"].command == f"deployctl sign {repository} pets:2 --key FILE"


def test_what_was_attested_and_passed_is_relied_on(second: Version) -> None:
    kept = {
        kind: attest(second, kind, make(second))
        for kind, make in (("slo", slo), ("diff", difference), ("bench", bench))
    }
    found = demanded(second, require=("slo", "diff", "bench"), max_p99_ms=20, min_rate=100, max_slowdown=1.2)
    assert unmet(found) == {}
    for kind, path in kept.items():
        relied = found[kind].relied
        assert relied is not None
        assert (relied.sha256, path.as_posix().endswith(relied.file)) == (sha256_file(path), True)


@pytest.mark.parametrize("kind", ["slo", "diff", "bench"])
@pytest.mark.parametrize("judgement", [FAIL, UNDECIDED], ids=["fail", "undecided"])
def test_a_later_no_outweighs_an_earlier_yes(second: Version, kind: str, judgement: Judgement) -> None:
    attest(second, kind, MAKERS[kind](second))
    assert unmet(demanded(second, require=(kind,))) == {}
    attest(second, kind, MAKERS[kind](second, judgement=judgement))
    assert judgement.reason in unmet(demanded(second, require=(kind,)))[kind]


@pytest.mark.parametrize(
    ("kind", "made", "policy", "words"),
    [
        ("slo", lambda version: slo(version, rate=50), {"min_rate": 200}, "is at 50 queries/s, and 200 are demanded"),
        ("slo", lambda version: slo(version, p99=30), {"max_p99_ms": 15}, "promises no p99 of at most 15 ms"),
        ("slo", lambda version: slo(version, confidence=0.6), {}, "is sure to 0.6, and 0.99 is demanded"),
        ("slo", slo, {"min_seconds": 30}, "rests on 5.0 s of load, and 30 are demanded"),
        ("slo", invalid, {}, "proves nothing: it lagged"),
        ("diff", lambda version: difference(version, gates={}), {}, "was held to no limit"),
        ("diff", loose, {"max_flips": 0.02}, "--max-flips 0.02"),
        ("diff", lambda version: difference(version, against=3), {}, "is against pets:3, and pets:1 is promoted"),
        ("bench", lambda version: bench(version, slowdown=None), {}, "was held to no limit"),
        ("bench", lambda version: bench(version, slowdown=3), {"max_slowdown": 1.1}, "--max-slowdown 1.1"),
    ],
    ids=[
        "rate", "bound", "confidence", "seconds", "invalid", "no gate", "loose gate", "other version", "no limit",
        "loose limit",
    ],
)  # fmt: skip
def test_an_attestation_that_says_less_is_not_enough(
    second: Version,
    kind: str,
    made: Callable[[Version], SloEvidence | DiffEvidence | BenchEvidence],
    policy: dict[str, Any],
    words: str,
) -> None:
    attest(second, kind, made(second))
    assert words in unmet(demanded(second, require=(kind,), **policy))[kind]


@pytest.mark.parametrize(
    ("kind", "made", "policy"),
    [
        ("slo", lambda version, **said: slo(version, rate=50, **said), {"min_rate": 200}),
        ("slo", lambda version, **said: slo(version, p99=30, **said), {"max_p99_ms": 15}),
        ("diff", lambda version, **said: difference(version, gates={"max_flips": 0.5}, **said), {"max_flips": 0.02}),
        ("bench", lambda version, **said: bench(version, slowdown=3, **said), {"max_slowdown": 1.2}),
    ],
    ids=["rate", "bound", "gate", "limit"],
)
def test_who_misses_an_easier_limit_misses_the_demanded_one(
    second: Version, kind: str, made: Callable[..., Any], policy: dict[str, Any]
) -> None:
    attest(second, kind, MAKERS[kind](second))
    assert unmet(demanded(second, require=(kind,), **policy)) == {}
    attest(second, kind, made(second, judgement=FAIL))
    assert FAIL.reason in unmet(demanded(second, require=(kind,), **policy))[kind]


def test_less_certainty_is_enough_where_the_environment_says_so(second: Version) -> None:
    attest(second, "slo", slo(second, confidence=0.9))
    assert unmet(demanded(second, require=("slo",), min_confidence=0.9)) == {}


def test_attestations_and_evidence_grow_too_old_and_none_is_from_the_future(second: Version) -> None:
    attest(second, "slo", slo(second))
    ages: dict[str, Any] = {"require": ("slo",), "max_age_days": 14, "max_evidence_age_days": 30}
    assert unmet(demanded(second, later=timedelta(days=13.9), **ages)) == {}
    assert list(unmet(demanded(second, later=timedelta(days=14.1), **ages))) == ["slo"]
    assert list(unmet(demanded(second, later=timedelta(days=30.1), **ages))) == ["evidence age", "slo"]
    assert "from the future" in unmet(demanded(second, later=-timedelta(hours=1), **ages))["slo"]


def test_a_yes_from_the_future_does_not_outweigh_a_no_of_now(second: Version) -> None:
    yes = attest(second, "slo", slo(second))
    yes.rename(yes.with_name("slo-29990101T000000Z.json"))
    assert "from the future" in unmet(demanded(second, require=("slo",)))["slo"]
    attest(second, "slo", slo(second, judgement=FAIL))
    assert "fail" in unmet(demanded(second, require=("slo",)))["slo"]
    attest(second, "slo", slo(second))
    assert unmet(demanded(second, require=("slo",))) == {}, "a run of now is all it takes"


def test_a_damaged_attestation_proves_nothing(second: Version) -> None:
    attest(second, "slo", slo(second)).write_text("{}")
    assert "is not a valid SloEvidence" in unmet(demanded(second, require=("slo",)))["slo"]


def test_an_attestation_of_another_version_proves_nothing(second: Version) -> None:
    attest(second, "slo", slo(find_version(second.repository, "pets:3")))
    assert "belongs to another version" in unmet(demanded(second, require=("slo",)))["slo"]


def test_served_parity_must_be_native_where_that_is_demanded(second: Version) -> None:
    def served(mode: str) -> None:
        record = ServedEvidence(
            judgement=PASS, mode=mode, engine="e", release="r", backend="b", config_difference=(), checks=(),
            executions=1, inferences=1, ready_seconds=1.0,
        )  # fmt: skip
        record.write(second.evidence / "served.json")

    assert "not served" in unmet(demanded(second, require_native=True))["native"]
    served("served (adapted)")
    assert "served (adapted)" in unmet(demanded(second, require_native=True))["native"]
    served("served (native)")
    assert unmet(demanded(second, require_native=True)) == {}


def test_checks_that_failed_architecture_and_what_is_unsafe(second: Version) -> None:
    assert list(unmet(demanded(second, architecture="confirmed"))) == ["architecture"]
    edit_manifest(second, verdicts=Verdicts(parity=PASS, architecture=PASS, served=FAIL))
    assert list(unmet(demanded(second, architecture="confirmed"))) == ["checks"]
    edit_manifest(second, verdicts=Verdicts(parity=FAIL, architecture=PASS, served=PASS), unsafe_accepted=("parity",))
    assert list(unmet(demanded(second))) == ["nothing unsafe"]
    assert unmet(demanded(second, allow_unsafe=True)) == {}


def test_a_signature_is_asked_of_whoever_can_check_it(second: Version) -> None:
    manifest = Manifest.read(second.manifest)
    policy = PromotionPolicy(require=("signature",), public_key=Path("release.pub"))
    for judgement in (PASS, FAIL):
        asked: list[Version] = []

        def check(version: Version, said: Judgement = judgement, asked: list[Version] = asked) -> Signatures:
            asked.append(version)
            return Signatures(judgement=said)

        found = demands(policy, Candidate.of(second, manifest, check_signature=check))
        assert ([one.judgement for one in found if one.name == "signature"], asked) == ([judgement], [second])


def test_only_what_somebody_trusted_signed_is_promoted(signed: SignedModel, keys: Path, tmp_path: Path) -> None:
    shutil.copy(keys / "release.pub", tmp_path)
    shutil.copy(keys / "other.pub", tmp_path)
    text = '[promote]\nrequire = ["signature"]\npublic_key = "{}.pub"\n'
    refused = run(signed.repository, "pets:2", "--environment", environment(tmp_path, text.format("other")))
    assert (refused.exit_code, promoted_version(signed.model)) == (ExitCode.NO, 1)
    assert "FAIL  signature" in refused.stdout
    config = signed.model / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 4", 1))
    edited = run(signed.repository, "pets:2", "--environment", environment(tmp_path, text.format("release")))
    assert (edited.exit_code, "is not the config of version 1" in edited.stdout) == (ExitCode.NO, True)
    assert run(signed.repository, "pets:1").exit_code == ExitCode.OK
    done = run(signed.repository, "pets:2", "--environment", environment(tmp_path, text.format("release")))
    assert (done.exit_code, promoted_version(signed.model)) == (ExitCode.OK, 2)
    approval = read_history(signed.model).entries[-1].approval
    assert approval is not None
    assert [met for met in approval.met if met.startswith("signature: signed by key")]


def test_the_promoted_version_needs_no_comparison_with_itself(repository: Path) -> None:
    first = find_version(repository, "pets:1")
    assert unmet(demanded(first, require=("diff", "bench"))) == {}


def test_a_config_that_does_not_say_what_is_promoted_excuses_no_comparison(second: Version) -> None:
    config = second.model_folder / "config.pbtxt"
    text = config.read_text()
    config.write_text(text + "instance_group [")
    found = demanded(second, require=("diff", "bench"))
    assert {name: "not known" in reason for name, reason in unmet(found).items()} == {"diff": True, "bench": True}
    assert found["diff"].command.startswith(f"deployctl promote {second.repository} pets:N, ")
    config.write_text(text)
    (second.model_folder / "1" / "manifest.json").unlink()
    assert "version 1, which has no manifest" in unmet(demanded(second, require=("diff",)))["diff"]
    config.unlink()
    assert unmet(demanded(second, require=("diff",))) == {}


def test_a_comparison_that_no_language_model_has_is_named_as_such(second: Version) -> None:
    edit_manifest(second, format="vllm")
    found = demanded(second, require=("diff", "bench"))
    assert unmet(found)["diff"] == "pets:2 is a language model, which diff does not run"
    assert found["bench"].command == "leave bench out of `require` for language models"


def test_an_ensemble_is_compared_by_its_network(tmp_path: Path) -> None:
    """No diff of an ensemble can be made: its network's, against the one that the promoted ensemble runs, is asked."""
    for _ in range(2):
        put_ensemble(tmp_path)
    whole, network = (find_version(tmp_path, f"{name}:2") for name in (WHOLE, "pets"))
    found = demanded(whole, require=("diff", "bench"), max_flips=0.02)
    assert set(unmet(found)) == {"diff", "bench"}
    assert found["diff"].command == f"deployctl diff {tmp_path} pets promoted 2 --max-flips 0.02"
    attest(network, "diff", difference(network, judgement=FAIL))
    attest(network, "bench", bench(network))
    assert unmet(demanded(whole, require=("diff", "bench"), max_flips=0.02)) == {"diff": f"fail, {FAIL.reason}"}
    kept = attest(network, "diff", difference(network))
    found = demanded(whole, require=("diff", "bench"), max_flips=0.02)
    assert unmet(found) == {}
    assert found["diff"].relied is not None
    assert kept.as_posix().endswith(f"pets/attestations/{found['diff'].relied.file}")
    # Another version of the network is promoted by its own name; the promoted ensemble runs the first all the same.
    put(tmp_path)
    promote(tmp_path, "pets", 3)
    assert demanded(whole, require=("diff",), max_flips=0.01)["diff"].command.endswith("pets 1 2 --max-flips 0.01")


def run(repository: Path, *arguments: object) -> Result:
    return CliRunner().invoke(command.command, [str(repository), *map(str, arguments)])


def environment(folder: Path, text: str) -> Path:
    path = folder / "production.toml"
    path.write_text(text)
    return path


def test_a_refusal_changes_nothing_and_exits_1(repository: Path, tmp_path: Path) -> None:
    file = environment(tmp_path, '[promote]\nrequire = ["slo", "diff"]\n')
    before = (repository / "pets/config.pbtxt").read_bytes()
    result = run(repository, "pets:2", "--environment", file)
    assert result.exit_code == ExitCode.NO
    assert "pets:2 is not promoted in production: not met: slo, diff" in result.stdout
    assert result.stdout.count("to do: deployctl") == 2
    assert (repository / "pets/config.pbtxt").read_bytes() == before
    assert read_history(repository / "pets").entries == ()
    printed = json.loads(run(repository, "pets:2", "--environment", file, "--json").stdout)
    assert (printed["promoted"], printed["exit_code"]) == (False, 1)
    assert [one["name"] for one in printed["demands"] if one["verdict"] == "fail"] == ["slo", "diff"]


def test_a_promotion_records_the_environment_and_what_it_relied_on(
    repository: Path, second: Version, tmp_path: Path
) -> None:
    kept = attest(second, "slo", slo(second))
    file = environment(tmp_path, '[promote]\nrequire = ["slo"]\nmax_age_days = 14\n')
    result = run(repository, "pets:2", "--environment", file)
    assert result.exit_code == ExitCode.OK, result.output
    assert promoted_version(repository / "pets") == 2
    approval = read_history(repository / "pets").entries[-1].approval
    assert approval is not None
    assert (approval.environment, approval.policy_sha256, approval.instead_of) == ("production", sha256_file(file), 1)
    assert [(one.kind, one.sha256) for one in approval.relied] == [("slo", sha256_file(kept))]


def test_the_flag_alone_demands_native_serving(repository: Path) -> None:
    result = run(repository, "pets:2", "--require-native")
    assert result.exit_code == ExitCode.NO
    assert "served parity is `not served`, not `served (native)`" in result.stdout


def test_an_approval_for_another_state_is_not_used(repository: Path) -> None:
    approval = Approval(environment="production", policy_sha256=None, instead_of=1, relied=())
    promote(repository, "pets", 3)
    with pytest.raises(UnfinishedError, match="version 3 was promoted while pets:2 was judged against version 1"):
        promote(repository, "pets", 2, approval=approval)
    assert promoted_version(repository / "pets") == 3


def test_a_history_from_before_there_were_policies_is_read(repository: Path) -> None:
    entry = {"action": "promote", "version": 1, "digest": "0" * 64, "at": "2026-01-01T00:00:00Z"}
    history = PromotionHistory.model_validate_json(json.dumps({"entries": [entry]}))
    assert history.entries[0].approval is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[promote]\nrequired = ["slo"]\n', "there is no such key; did you mean require?"),
        ('[promote]\nrequire = ["slow"]\n', "slow"),
        ("[promote]\nmax_flips = 0.02\n", 'max_flips is about "diff", which `require` does not name'),
        ('[promote]\nrequire = ["slo"]\nmax_age_days = -1\n', "greater than 0"),
        ('[promote]\nrequire = ["signature"]\n', "it is not said whose signature counts; say public_key"),
        ('[promote]\npublic_key = "release.pub"\n', 'public_key is about "signature"'),
        ("[promotion]\n", r"did you mean \[promote\]"),
        ("promote", "is not TOML"),
        ("", "has no table"),
    ],
)
def test_a_file_that_nobody_can_mean_is_refused(repository: Path, tmp_path: Path, text: str, words: str) -> None:
    result = run(repository, "pets:2", "--environment", environment(tmp_path, text))
    assert isinstance(result.exception, UsageError)
    with pytest.raises(UsageError, match=words):
        raise result.exception


def test_the_example_is_a_policy(second: Version) -> None:
    found = read_environment(ROOT / "examples" / "environments" / "production.toml")
    assert found.name == "production"
    assert {"slo", "diff", "architecture"} <= {one.name for one in demands(found.policy, candidate_of(second))}


def candidate_of(version: Version) -> Candidate:
    return Candidate.of(version, Manifest.read(version.manifest))


def test_a_version_that_changed_is_not_even_judged(second: Version) -> None:
    (second.folder / "model.onnx").write_bytes(b"malice")
    with pytest.raises(UsageError, match=r"model\.onnx has changed"):
        promote_under(PromotionPolicy(), second)
