"""`deployctl slo --llm` as pipelines run it, against tokens that come at known times."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from deploy.cli.main import cli
from deploy.errors import UsageError
from deploy.serve.engines import Engine
from tests.slo.tokens import FIRST_SECONDS, GAP_SECONDS, TOKENS, clock, served_clock

QUICK = ("--rate", "20", "--duration", "3", "--min-duration", "0", "--warm-up", "0.2", "--tokens", str(TOKENS))
LOOSE = ("--ttft-p50-ms", "2000", "--itl-p50-ms", "1000")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with clock() as found:
        yield found


def slo(address: str, *arguments: str) -> Result:
    """What `deployctl slo clock --llm ...` says and ends with. Raises what the command raises."""
    found = CliRunner().invoke(
        cli, ["slo", "clock", "--llm", "--url", address, *QUICK, *arguments], standalone_mode=False
    )
    if found.exception is not None:
        raise found.exception
    return found


def judge(record: dict[str, object]) -> None:
    """The figures of a run that passed: no token sooner than it was sent."""
    assert record["exit_code"] == 0
    bounds = record["bounds"]
    assert isinstance(bounds, list)
    assert [one["bound"]["kind"] for one in bounds] == ["ttft", "itl"]
    assert {one["judgement"]["verdict"] for one in bounds} == {"pass"}
    stream = record["stream"]
    assert isinstance(stream, dict)
    assert stream["tokens_per_query"] == TOKENS
    assert stream["tokens"] == TOKENS * int(str(record["queries"]))
    assert stream["ttft"][0]["value"] >= 1000 * FIRST_SECONDS
    assert stream["itl"][0]["value"] >= 900 * GAP_SECONDS


def test_a_pass_is_printed_for_machines(address: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\n\ntwo\nthree\n")
    found = slo(address, *LOOSE, "--prompts", str(tmp_path / "prompts.txt"), "--json")
    assert found.return_value in (0, None)
    record = json.loads(found.stdout)
    judge(record)
    assert record["client"]["protocol"] == "http", "the address says no protocol, and tokens are streamed over HTTP"
    assert record["stream"]["prompts"] == 3


def test_a_result_whose_files_cannot_be_written_is_one_object_all_the_same(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("deploy.files.write_atomically", full)
    found = slo(address, *LOOSE, "--junit", str(tmp_path / "slo.xml"), "--json")
    record = json.loads(found.stdout)
    assert (found.return_value, record["exit_code"], record["judgement"]["verdict"]) == (4, 4, "pass")
    assert "the disk is full" in record["error"]["found"] and "error: the disk is full" in found.stderr


def test_a_bound_that_no_token_can_keep_ends_in_1_and_says_so(address: str, tmp_path: Path) -> None:
    config, junit = tmp_path / "deploy.toml", tmp_path / "slo.xml"
    config.write_text(f"[slo]\nitl_p50_ms = {500 * GAP_SECONDS}\n")
    found = slo(address, "--ttft-p50-ms", "2000", "--config", str(config), "--junit", str(junit))
    assert found.return_value == 1
    assert "FAIL  clock under load" in found.stdout
    assert f"inter-token p50 <= {500 * GAP_SECONDS:g} ms" in found.stdout
    assert "time to first token, in ms" in found.stdout
    assert ElementTree.parse(junit).getroot()[0].get("failures") == "1"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((*LOOSE, "--samples", "rows.npz"), "--samples was given beside --llm"),
        ((*LOOSE, "--no-llm"), "--tokens was given without --llm"),
        ((*LOOSE, "--protocol", "grpc"), "tokens are streamed over HTTP"),
        (("--error-rate", "0.5", "--prompts", "nowhere.txt"), "nowhere.txt cannot be read"),
    ],
    ids=["rows", "no model", "another protocol", "no prompts"],
)
def test_options_that_do_not_fit_are_refused_before_any_load(arguments: tuple[str, ...], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        slo("127.0.0.1:1", *arguments)


@pytest.mark.slow
@pytest.mark.engine
def test_a_decoupled_model_in_a_real_triton_passes(engine: Engine, tmp_path: Path) -> None:
    with served_clock(tmp_path, engine) as served:
        record = json.loads(slo(served, *LOOSE, "--json").stdout)
    judge(record)
    assert record["server"]["requests"] >= record["queries"]
