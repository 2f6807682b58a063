"""A module's linear layers in int8 through torchao, ready to be exported for AOTInductor.

Owns which layers are quantized, by which scheme, and what is refused. Called by lower, in a child process. Needs the
extra `torchao`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.errors import MissingError, UnfinishedError

if TYPE_CHECKING:
    from torch import nn

# Below this share of the weights in linear layers int8 there changes little of what the network costs.
_SHARE = 0.5


def require_torchao() -> None:
    """Raises MissingError without the extra `torchao`."""
    import importlib.util

    if importlib.util.find_spec("torchao") is None:
        raise MissingError(
            "int8 for AOTInductor needs torchao, which is not installed",
            expected="the extra torchao",
            fix='pip install "deployctl[torchao]", or use --formats onnx',
        )


def quantize_linear(module: nn.Module) -> str:
    """Puts the weights of `module`'s linear layers into int8, in place; gives the scheme in words.

    Weights are symmetric per output channel; activations per token, when a request comes (dynamic). Raises MissingError
    without torchao, UnfinishedError where most weights lie in layers that torchao leaves alone, such as convolutions.
    """
    require_torchao()
    from torch import nn

    linear = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    # An embedding costs a look-up, whatever its size.
    others = [
        parameter.numel()
        for layer in module.modules()
        if not isinstance(layer, nn.Linear | nn.Embedding)
        for parameter in layer.parameters(recurse=False)
    ]
    weights = sum(layer.weight.numel() for layer in linear)
    share = weights / max(weights + sum(others), 1)
    if share < _SHARE:
        raise UnfinishedError(
            f"{share:.0%} of the weights that compute are in linear layers, and torchao has int8 for those only",
            expected=f"at least {_SHARE:.0%}, as transformers have",
            fix="use --formats onnx, which quantizes convolutions with --samples or --calibration",
        )
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    # Its settings of the compiler are for GPUs, and global.
    quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    unwrap_tensor_subclass(module)
    return f"dynamic: {len(linear)} linear layers, weights per channel, activations per token (torchao)"
