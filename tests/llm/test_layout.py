"""What Triton's vLLM backend reads: the config, the engine arguments, the adapters, and where they lead."""

import json
from pathlib import Path

import pytest

from deploy.errors import MissingError, UsageError
from deploy.evidence import Verdict
from deploy.llm.layout import llm_config
from deploy.llm.model import LlmRequest, LlmResult, Wishes
from deploy.llm.package import package_llm, plan_llm
from deploy.llm.records import SIZING_FILE, Sizing
from deploy.repository.engine_files import inside_version
from deploy.repository.layout import Version
from deploy.repository.lint import lint
from deploy.repository.manifest import verify_files
from deploy.repository.promotion import promote
from deploy.repository.protobuf import parse_config
from deploy.serve.vllm import local_arguments
from deploy.targets import find_target
from tests.llm.checkpoints import Llama, edit_json, write_adapter

TINY = Llama()


@pytest.fixture(autouse=True)
def without_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cache, and so no vLLM, whose import takes longer than all of these tests."""
    monkeypatch.setenv("DEPLOYCTL_CACHE", str(tmp_path / "cache"))


def request(tmp_path: Path, **changes: object) -> LlmRequest:
    """A request for the tiny model, whose tokens are not proven: that takes vLLM."""
    path = tmp_path / "llama"
    asked = LlmRequest(
        path=path if path.exists() else TINY.write(path),
        repository=tmp_path / "repository",
        target=find_target("26.08-cuda-sm90"),
        wishes=Wishes(gpu="H100-80GB"),
        serve_check=False,
    )
    return LlmRequest(**{name: getattr(asked, name) for name in asked.__slots__} | changes)


def published(result: LlmResult) -> Version:
    assert result.published is not None
    return result.published.version


def read(path: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_the_config_says_all_that_the_backend_would_complete() -> None:
    config = parse_config(llm_config("chat", 3))
    assert (config.backend, config.max_batch_size) == ("vllm", 0)
    assert config.model_transaction_policy.decoupled
    (group,) = config.instance_group
    assert group.kind == group.KIND_MODEL
    assert not group.gpus
    assert [tensor.name for tensor in config.input if not tensor.optional] == ["text_input"]
    assert {"text_output", "num_output_tokens"} <= {tensor.name for tensor in config.output}
    assert lint(llm_config("chat", 3)) == ()


def test_a_version_holds_weights_arguments_and_evidence(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "support", TINY)
    version = published(package_llm(request(tmp_path, name="chat", adapters=(("support", adapter),))))
    arguments, places = read(version.folder / "model.json"), read(version.folder / "multi_lora.json")
    assert arguments["model"] == "/models/chat/1/weights"
    assert places == {"support": "/models/chat/1/lora/support"}
    assert arguments | {"tensor_parallel_size": 1, "max_model_len": 128, "dtype": "float32"} == arguments
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 8)
    weights = version.folder / "weights"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (weights / name).read_bytes() == (tmp_path / "llama" / name).read_bytes()
        assert (weights / name).stat().st_ino != (tmp_path / "llama" / name).stat().st_ino
    manifest = verify_files(version.folder)
    assert (manifest.format, manifest.checkpoint.architecture) == ("vllm", "LlamaForCausalLM")
    assert manifest.wire["text_input"] == "text_input"
    assert Sizing.read(version.evidence / SIZING_FILE).fits
    assert (version.evidence / "report.html").stat().st_size > 0


def test_what_was_not_proven_is_said_and_never_passed(tmp_path: Path) -> None:
    result = package_llm(request(tmp_path))
    assert result.judgements["tokens"].verdict is Verdict.UNDECIDED
    assert "not done" in result.judgements["tokens"].reason
    assert result.judgements["engine arguments"].verdict is Verdict.UNDECIDED
    manifest = verify_files(published(result).folder)
    assert (manifest.served_check, manifest.verdicts.served) == ("skipped", None)
    assert manifest.verdicts.parity.verdict is Verdict.UNDECIDED
    # Served but not compared would be another matter.
    assert manifest.model_copy(update={"served_check": "done"}).blockers()


def test_without_vllm_the_proof_is_refused_before_any_work(tmp_path: Path) -> None:
    asked = request(tmp_path, serve_check=True)
    with pytest.raises(MissingError):
        package_llm(asked)
    assert not asked.repository.exists()


def test_longrope_is_served_and_proven_as_its_context_has_it(tmp_path: Path) -> None:
    """vLLM takes the long factors for every prompt once the context is longer than the short ones' own."""
    path = TINY.write(tmp_path / "llama", max_position_embeddings=131_072)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    edit_json(path / "config.json", rope_parameters=rope, original_max_position_embeddings=4096)
    result = package_llm(request(tmp_path))
    assert result.plan.sizing.context == 4096
    assert any("takes the factors for long prompts for short ones too" in note for note in result.plan.checkpoint.notes)
    assert local_arguments(published(result))["max_model_len"] == 2048
    asked = request(tmp_path, wishes=Wishes(gpu="H100-80GB", context=32_768))
    longer = local_arguments(published(package_llm(asked)))
    # A proof within the short factors would say nothing of what is served.
    assert (longer["max_model_len"], longer["kv_cache_memory_bytes"]) == (4097, 3 * 1024**3)


def test_the_second_version_has_its_own_number_in_every_path(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "support", TINY)
    asked = request(tmp_path, name="chat", adapters=(("support", adapter),), mounted_at="/mnt/models")
    package_llm(asked)
    second = published(package_llm(asked))
    assert second.number == 2
    assert read(second.folder / "model.json")["model"] == "/mnt/models/chat/2/weights"
    assert read(second.folder / "multi_lora.json")["support"] == "/mnt/models/chat/2/lora/support"
    promote(asked.repository, "chat", 2)
    assert parse_config((asked.repository / "chat" / "config.pbtxt").read_text()).version_policy.specific.versions == [
        2
    ]


def test_going_on_with_training_does_not_change_what_was_published(tmp_path: Path) -> None:
    version = published(package_llm(request(tmp_path)))
    edit_json(tmp_path / "llama" / "config.json", rope_theta=1.0)
    (tmp_path / "llama" / "model.safetensors").write_bytes(b"")
    verify_files(version.folder)


def test_a_failure_publishes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        package_llm(request(tmp_path, wishes=Wishes(gpu="H100-80GB", sequences=10_000_000_000)))
    assert not (tmp_path / "repository").exists()


def test_a_dry_run_shows_the_arithmetic_and_writes_nothing(tmp_path: Path) -> None:
    plan = plan_llm(request(tmp_path))
    assert plan.vllm == "0.27.1"
    assert "H100-80GB" in plan.sizing.lines()[0]
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("place", ["models", "/models/../etc"])
def test_a_mount_point_must_be_absolute(tmp_path: Path, place: str) -> None:
    with pytest.raises(UsageError, match="--mounted-at is"):
        package_llm(request(tmp_path, mounted_at=place))


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        ("vllm-decoupled", "decoupled: true", "decoupled: false"),
        ("vllm-instances", "kind: KIND_MODEL", "kind: KIND_CPU"),
        ("vllm-output", 'name: "text_output"', 'name: "text"'),
        ("vllm-batch", 'backend: "vllm"', 'backend: "vllm" max_batch_size: 4'),
    ],
)
def test_a_config_that_the_backend_refuses_is_found(rule: str, old: str, new: str) -> None:
    text = llm_config("chat", 1)
    assert old in text
    assert [finding.rule for finding in lint(text.replace(old, new))] == [rule]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("meta-llama/Llama-3.1-8B", "no absolute path into chat/1/"),
        ("/models/chat/2/weights", "no absolute path into chat/1/"),
        ("/models/chat/1/other", "which is not in the version"),
        (None, "no absolute path"),
    ],
)
def test_engine_arguments_that_lead_elsewhere_are_found(tmp_path: Path, model: str | None, said: str) -> None:
    version = published(package_llm(request(tmp_path, name="chat")))
    edit_json(version.folder / "model.json", model=model)
    (finding,) = lint(version.config.read_text(), folder=version.model_folder)
    assert finding.rule == "vllm-path"
    assert said in finding.message


def test_paths_are_followed_into_the_version_only() -> None:
    assert str(inside_version("/mnt/models/chat/12/lora/a", "chat", 12)) == "lora/a"
    for elsewhere in ("models/chat/12/weights", "/models/chat/1/weights", "/models/chat/12/../3/weights"):
        assert inside_version(elsewhere, "chat", 12) is None
