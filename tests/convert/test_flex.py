"""FlexAttention: rewritten as plain attention it computes the same, and each format says which way it took."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim, ExportedProgram

from deploy.convert.export import export_program
from deploy.convert.flex import count_flex_attention, for_a_kernel, mended_kernel, plain_attention
from deploy.convert.run import Conversion, convert
from deploy.errors import UnfinishedError
from deploy.processes import run_alone
from deploy.progress import Silent
from deploy.validate.executables import AotiModel, OnnxModel
from tests.attention import TOKENS, Causal, Everything, LearnedBias, SlidingWindow, Transformer, WiderWindow, lively
from tests.convert.helpers import Read, plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),  # torch's own, while it traces
]
KINDS = (Causal, SlidingWindow, LearnedBias)


def exported_program(module: Transformer) -> ExportedProgram:
    batch = Dim("batch", min=1, max=8)
    return torch.export.export(module, (torch.randn(2, *TOKENS),), dynamic_shapes=({0: batch},), strict=False)


@pytest.mark.parametrize("factory", [Transformer, *KINDS, Everything])
def test_plain_attention_computes_the_same_for_any_batch(factory: type[Transformer]) -> None:
    module = lively(factory)
    exported = exported_program(module)
    plain = plain_attention(exported)

    assert (count_flex_attention(exported), count_flex_attention(plain)) == (1, 0)
    for batch in (1, 2, 5):
        tokens = torch.randn(batch, *TOKENS)
        torch.testing.assert_close(plain.module()(tokens), module(tokens), rtol=1e-6, atol=1e-6)


def test_plain_attention_holds_nothing_of_the_block_mask() -> None:
    plain = plain_attention(exported_program(lively(LearnedBias)))

    names = {str(node.target) for node in plain.graph.nodes}
    assert not any("sort" in name or "index_put" in name or "assert" in name for name in names)
    assert list(plain.graph_module.named_children()) == []


def test_program_without_the_operator_is_left_alone() -> None:
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.randn(3, 2),))
    assert plain_attention(exported) is exported


@pytest.mark.parametrize("factory", KINDS)
def test_program_made_ready_for_a_kernel_computes_the_same(factory: type[Transformer]) -> None:
    module = lively(factory)
    ready = for_a_kernel(exported_program(module))

    tokens = torch.randn(3, *TOKENS)
    assert count_flex_attention(ready) == 1
    torch.testing.assert_close(ready.module()(tokens), module(tokens), rtol=1e-6, atol=1e-6)


def test_score_mod_that_makes_a_table_is_refused_with_the_way_out() -> None:
    class MakesATable(Transformer):
        def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            def score_mod(score: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
                return score + torch.tensor([0.0, 1.0]).sum()

            return torch.nn.attention.flex_attention.flex_attention(query, key, value, score_mod=score_mod)

    with pytest.raises(UnfinishedError, match=r"makes a tensor of its own(.|\n)*as a buffer"):
        plain_attention(exported_program(lively(MakesATable)))


@pytest.mark.parametrize("changed", ["threads", "product"])
def test_kernel_of_a_torch_that_writes_it_otherwise_is_not_used(changed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("torch._inductor.lowering")
    from torch._inductor.codegen import cpp_flex_attention_template as template
    from torch._inductor.codegen.cpp_micro_gemm import CppMicroGemmFP32Vec

    if changed == "threads":
        # Before torch 2.12 there is none.
        monkeypatch.setattr(template, "INIT_PARAMS", "int64_t threads = {{num_thread}};", raising=False)
    else:
        monkeypatch.setattr(CppMicroGemmFP32Vec, "TEMPLATE_KERNEL", "if (N > 0) {")
    with pytest.raises(UnfinishedError, match="other machines' threads"), mended_kernel():
        pass


def converted(factory: type[Transformer], folder: Path, *formats: str) -> Conversion:
    checkpoint = Read(folder)(factory, TOKENS)
    torch.save(lively(factory).state_dict(), folder / f"{factory.__name__.lower()}.pt")
    conversion = convert(checkpoint, plan(folder, *formats), Silent())  # type: ignore[arg-type]
    assert not conversion.failures, conversion.failures
    return conversion


def test_onnx_says_that_attention_was_decomposed(tmp_path: Path) -> None:
    conversion = converted(LearnedBias, tmp_path, "onnx")

    assert conversion.program.flex_attention == 1
    assert conversion.artifacts["onnx"].details["flex_attention"] == "decomposed to plain attention"
    check(OnnxModel(conversion.artifacts["onnx"].path, threads=1), LearnedBias)


def test_programs_whose_masks_alone_differ_have_digests_of_their_own(tmp_path: Path) -> None:
    digests = {
        run_alone("export", export_program, Read(tmp_path)(factory, TOKENS), max_batch=4, folder=tmp_path).value.digest
        for factory in (SlidingWindow, WiderWindow)
    }
    assert len(digests) == 2


@pytest.mark.slow
@pytest.mark.parametrize("factory", KINDS)
def test_aoti_has_the_fused_kernel_whichever_format_is_asked_for_first(
    factory: type[Transformer], tmp_path: Path
) -> None:
    conversion = converted(factory, tmp_path, "onnx", "aoti")

    assert conversion.artifacts["aoti"].details["flex_attention"] == "fused kernel"
    assert conversion.artifacts["onnx"].details["flex_attention"] == "decomposed to plain attention"
    check(AotiModel(conversion.artifacts["aoti"].path, threads=1), factory)


@pytest.mark.slow
def test_aoti_is_decomposed_with_the_reason_where_there_is_no_kernel(tmp_path: Path) -> None:
    conversion = converted(Everything, tmp_path, "aoti")

    way = conversion.artifacts["aoti"].details["flex_attention"]
    assert way.startswith("decomposed to plain attention (")
    assert "NotImplementedError" in way
    check(AotiModel(conversion.artifacts["aoti"].path, threads=1), Everything)


def check(model: AotiModel | OnnxModel, factory: type[Transformer]) -> None:
    module = lively(factory)
    for batch in (1, 3, 4):
        tokens = torch.randn(batch, *TOKENS)
        (found,) = model.run([tokens.numpy()])
        np.testing.assert_allclose(found, module(tokens).numpy(), rtol=1e-5, atol=1e-5)
