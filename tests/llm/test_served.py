"""From a folder to tokens that a real Triton with the real vLLM serves: needs `make vllm`, and takes minutes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from deploy.errors import ExitCode, UsageError
from deploy.evidence import Verdict
from deploy.llm.model import LlmRequest, LlmResult, Wishes
from deploy.llm.package import package_llm
from deploy.llm.records import TOKENS_FILE, Reference, TokensEvidence
from deploy.llm.served import check_served_llm
from deploy.repository.layout import Version
from deploy.repository.manifest import verify_files
from deploy.serve.engines import Engine
from deploy.serve.server import ServerOptions
from deploy.serve.serving import serving
from deploy.serve.vllm import ask_vllm, find_vllm
from deploy.slo.records import Bound
from deploy.slo.request import SloRequest
from deploy.slo.run import check_slo
from deploy.slo.stream import StreamQuestion
from deploy.targets import find_target
from deploy.verify import verify
from tests.llm.checkpoints import Llama, write_adapter

pytestmark = [pytest.mark.slow, pytest.mark.engine]
TINY = Llama()


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """What packaging the tiny model with its adapter came to."""

    result: LlmResult
    version: Version
    reference: Reference


@pytest.fixture(scope="module")
def packaged(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    folder = tmp_path_factory.mktemp("llm")
    request = LlmRequest(
        path=TINY.write(folder / "llama", shards=2),
        repository=folder / "repository",
        target=find_target("local-cpu"),
        adapters=(("support", write_adapter(folder / "support", TINY)),),
        wishes=Wishes(sequences=4),
    )
    result = package_llm(request)
    assert result.published is not None, result.judgements
    version = result.published.version
    reference = TokensEvidence.read(version.evidence / TOKENS_FILE).reference
    return Packaged(result=result, version=version, reference=reference)


def test_a_folder_becomes_a_version_whose_tokens_are_transformers_own(packaged: Packaged) -> None:
    result = packaged.result
    assert {name: one.verdict for name, one in result.judgements.items()} == dict.fromkeys(
        ("engine arguments", "tokens", "served"), Verdict.PASS
    )
    assert result.served is not None
    assert [check.name for check in result.served.checks] == ["generate", "generate_stream", "all at once"]
    assert any("deployctl_vllm" in line for line in result.served.config_difference)
    base, adapted = packaged.reference.prompts[0], packaged.reference.prompts[6]
    assert (base.text, adapted.adapter) == (adapted.text, "support")
    assert base.tokens != adapted.tokens, "the adapter changes what is said, so that it was served is proven"
    manifest = verify_files(packaged.version.folder)
    assert manifest.blockers() == ()
    assert manifest.served_check == "done"


def test_verify_serves_it_again(packaged: Packaged, engine: Engine) -> None:
    found = verify(packaged.version.repository, None, engine=engine)
    assert found.exit_code is ExitCode.OK
    assert set(found.versions[0].checks) == {"digests", "lint", "target", "served"}


def test_the_tokens_of_another_fine_tune_are_found(packaged: Packaged, engine: Engine, tmp_path: Path) -> None:
    """The same folder with other weights, held against the first one's tokens."""
    other = Version(repository=tmp_path, name=packaged.version.name, number=1)
    request = LlmRequest(
        path=Llama(seed=1).write(tmp_path / "other"),
        repository=tmp_path / "repository",
        target=find_target("local-cpu"),
        name=packaged.version.name,
        serve_check=False,
    )
    result = package_llm(request)
    assert result.published is not None
    other = result.published.version
    alone = packaged.reference.model_copy(update={"prompts": packaged.reference.prompts[:2]})
    found = check_served_llm(other, engine, alone)
    assert found.tokens.judgement.verdict is Verdict.FAIL
    assert "prompt 0: token" in found.evidence.judgement.reason


def test_vllm_itself_refuses_arguments_that_it_does_not_take(packaged: Packaged) -> None:
    arguments = json.loads((packaged.version.folder / "model.json").read_text())
    arguments["model"] = str(packaged.version.folder / "weights")
    vllm = find_vllm()
    with pytest.raises(UsageError, match=r"refuses the engine arguments: TypeError.*no_such_argument"):
        ask_vllm(vllm, arguments | {"no_such_argument": 1})
    with pytest.raises(UsageError, match="refuses the engine arguments"):
        ask_vllm(vllm, arguments | {"max_model_len": 10_000})


@pytest.fixture(scope="module")
def address(packaged: Packaged, engine: Engine) -> Iterator[str]:
    with serving([packaged.version], engine=engine, options=ServerOptions(ready_seconds=600)) as server:
        yield server.http_address


def test_time_to_first_token_and_between_tokens_are_measured(packaged: Packaged, address: str) -> None:
    bounds = (Bound(kind="ttft", q=0.5, limit=20_000.0), Bound(kind="itl", q=0.5, limit=5_000.0))
    request = SloRequest(
        reference=packaged.version.name,
        url=address,
        protocol="http",
        bounds=bounds,
        rate=2,
        seconds=15,
        min_seconds=0,
        warm_up_seconds=1,
        deadline=60,
        stream=StreamQuestion(prompts=("The quick brown fox", "Once upon a time"), tokens=8),
    )
    found = check_slo(request)
    assert (found.judgement.verdict, found.errors) == (Verdict.PASS, {})
    assert found.stream is not None
    assert found.stream.tokens == 8 * found.queries
    assert 0 < found.stream.ttft[0].value < found.quantiles[0].value
