"""Weights folded and packed for oneDNN as an archive is opened, and not in every call.

Owns the settings, and the C++ that packs; what is done to the graph is in `prepack_graph`. The weights stay in the
archive as the checkpoint has them: the next fine-tune's can take their place, and oneDNN packs them for the processor
that serves. AOTInductor's own packing (`freezing`) puts packed weights into the archive, and leaves those of
convolutions as they are where the batch is dynamic. Called by aoti, in a child process, for every archive whose
tactic does not say otherwise.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from deploy.convert.prepack_graph import (
    Operators,
    fold_batch_norms,
    has_weights_to_pack,
    pack_weights,
    sum_single_pixels,
)

if TYPE_CHECKING:
    from torch import Tensor, fx

PREPACK = "prepack"
"""The option of a tactic that says whether to do this."""

PACKED = {"packing": "oneDNN, as the archive is opened"}
"""What the details of an archive say of it."""

_LIBRARY = "deployctl"
_OF_CONVOLUTION, _OF_LINEAR = "packed_convolution_weight", "packed_linear_weight"
_SCHEMAS = {
    _OF_CONVOLUTION: "(Tensor weight, int[] padding, int[] stride, int[] dilation, int groups, int[] image) -> Tensor",
    _OF_LINEAR: "(Tensor weight, int rows) -> Tensor",
}
# What the archive calls where the graph has these operators: oneDNN's own packing, through torch's dispatcher. In the C
# interface that archives are linked with it has no function, and the proxy by which other operators are called is not
# there while constants are folded. Lists and optional values are passed as torch/csrc/stable/ says; the dispatcher
# takes both over. Torch puts each text behind `extern` and a semicolon behind it.
_FUNCTIONS = (
    "AOTITorchError torch_new_list_reserve_size(size_t size, void** list)",
    "AOTITorchError torch_list_push_back(void* list, StableIValue element)",
    """AOTITorchError aoti_torch_cpu_packed_convolution_weight(
    AtenTensorHandle weight, const int64_t* padding, int64_t padding_len, const int64_t* stride, int64_t stride_len,
    const int64_t* dilation, int64_t dilation_len, int64_t groups, const int64_t* image, int64_t image_len,
    AtenTensorHandle* packed) {
  auto list = [](const int64_t* values, int64_t count) {
    void* made = nullptr;
    AOTI_TORCH_ERROR_CODE_CHECK(torch_new_list_reserve_size(count, &made));
    for (int64_t i = 0; i < count; i++)
      AOTI_TORCH_ERROR_CODE_CHECK(torch_list_push_back(made, static_cast<StableIValue>(values[i])));
    return reinterpret_cast<StableIValue>(made);
  };
  AtenTensorHandle own = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(weight, &own));
  StableIValue stack[] = {
      reinterpret_cast<StableIValue>(own), list(padding, padding_len), list(stride, stride_len),
      list(dilation, dilation_len), static_cast<StableIValue>(groups),
      reinterpret_cast<StableIValue>(new StableIValue(list(image, image_len)))};
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher("mkldnn::_reorder_convolution_weight", "", stack));
  *packed = reinterpret_cast<AtenTensorHandle>(stack[0]);
  return AOTI_TORCH_SUCCESS;
}""",
    """AOTITorchError aoti_torch_cpu_packed_linear_weight(
    AtenTensorHandle weight, int64_t rows, AtenTensorHandle* packed) {
  AtenTensorHandle own = nullptr;
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(weight, &own));
  StableIValue stack[] = {
      reinterpret_cast<StableIValue>(own),
      reinterpret_cast<StableIValue>(new StableIValue(static_cast<StableIValue>(rows)))};
  AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_call_dispatcher("mkldnn::_reorder_linear_weight", "", stack));
  *packed = reinterpret_cast<AtenTensorHandle>(stack[0]);
  return AOTI_TORCH_SUCCESS;
}""",
)


def is_packed(details: Mapping[str, str]) -> bool:
    """Whether an artifact's details say that its weights are packed."""
    return PACKED.items() <= details.items()


def prepack(module: fx.GraphModule, *, known: Collection[str]) -> dict[str, Any]:
    """The settings that compile a program so, whose graph is made ready in place; none where packing gains nothing.

    That is on a processor which is not x86, with a release of torch that has not all of the settings, whose `known`
    ones are given, and where no layer is worth it: then the graph is left as it is.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    settings = _settings()
    if settings.keys() - set(known) or not has_weights_to_pack(module):
        return {}
    sum_single_pixels(module)
    fold_batch_norms(module)
    return settings


def _settings() -> dict[str, Any]:
    operators = _register()

    def prepare(graph: fx.Graph) -> None:
        pack_weights(graph, operators)

    return {
        "aot_inductor.use_runtime_constant_folding": True,
        "aot_inductor.custom_ops_to_c_shims": {operators.convolution: [*_FUNCTIONS], operators.linear: []},
        "post_grad_custom_pre_pass": prepare,
        # They ask packed weights for their strides, which those do not have.
        "size_asserts": False,
    }


def _register() -> Operators:
    """The operators, known to this process, which compiles; the archive has its own C++ for them."""
    import torch

    library = getattr(torch.ops, _LIBRARY)
    if not hasattr(library, _OF_CONVOLUTION):
        for name, schema in _SCHEMAS.items():
            torch.library.define(f"{_LIBRARY}::{name}", schema)
            torch.library.register_fake(f"{_LIBRARY}::{name}", _unpacked)
        torch.library.impl(f"{_LIBRARY}::{_OF_CONVOLUTION}", "CPU", torch.ops.mkldnn._reorder_convolution_weight)
        torch.library.impl(f"{_LIBRARY}::{_OF_LINEAR}", "CPU", torch.ops.mkldnn._reorder_linear_weight)
    return Operators(convolution=getattr(library, _OF_CONVOLUTION).default, linear=getattr(library, _OF_LINEAR).default)


def _unpacked(weight: Tensor, *_: Any) -> Tensor:
    """What a tracer is to think of a packed weight: its sizes."""
    return weight.new_empty(weight.shape)
