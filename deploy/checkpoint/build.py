"""Modules built without memory for their parameters, and weights assigned into them without a copy.

Owns the meta-device trick and the assignment; decides nothing about which architecture it is.
Called by load and, for shapes alone, by zoo_index.
"""

import inspect
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from deploy.checkpoint.architecture import EPSILON, HEAD, Architecture
from deploy.checkpoint.head_layers import parse_layer
from deploy.checkpoint.vision import import_torchvision
from deploy.errors import UsageError

COUNTER = "num_batches_tracked"  # of batch norm: training counts with it, inference never reads it


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While this lasts, every parameter that a module registers is replaced by one without data.

    `torch.device("meta")` would do so to all tensors: builders that compute with tensors (regnet) fail under it, and
    buffers that are not in the state_dict are left without values. Not for use in several threads at once.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta and not isinstance(param, UninitializedParameter):
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_architecture(entry: Architecture, options: Mapping[str, Any]) -> nn.Module:
    """The builder's module, its parameters on the meta device.

    `options` are the builder's keywords, `in_channels`, `norm_epsilon` and `head`. No torchvision builder takes the
    number of input channels, so the first convolution is changed where it is not 3; a head of training's own is put
    where the builder's is.
    """
    builder = import_torchvision().models.get_model_builder(entry.builder)
    keywords = dict(options)
    channels, epsilon = keywords.pop("in_channels", 3), keywords.pop(EPSILON, None)
    head = keywords.pop(HEAD, {})
    if "weights_backbone" in inspect.signature(builder).parameters:
        keywords["weights_backbone"] = None  # by default such a builder downloads them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = _built_without_data(builder, keywords)
    put_head(module, head)
    if channels != 3:
        assert entry.stem is not None
        _change_channels(module, entry.stem.removesuffix(".weight"), channels)
    if epsilon is not None:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eps = epsilon
    return module


def put_head(module: nn.Module, head: Mapping[str, str | Mapping[str, str]]) -> nn.Module:
    """The module with what its `head` option says at each path."""
    for path, part in make_head(head).items():
        module.set_submodule(path, part)
    return module


def make_head(head: Mapping[str, str | Mapping[str, str]]) -> dict[str, nn.Module]:
    """What a `head` option says by path: one layer, or several by name in an nn.Sequential.

    Raises UsageError where torch.nn does not make a layer of its arguments.
    """
    made: dict[str, nn.Module] = {}
    with parameters_on_meta():
        for path, said in head.items():
            layers = {"": said} if isinstance(said, str) else said
            parts = OrderedDict((name, _layer(text)) for name, text in layers.items())
            made[path] = parts[""] if "" in parts else nn.Sequential(parts)
    return made


def _layer(text: str) -> nn.Module:
    name, arguments, keywords = parse_layer(text)
    if name in ("Softmax", "LogSoftmax") and not arguments:
        keywords = {"dim": 1, **keywords}  # of rows of scores; without it torch guesses the same, and warns
    try:
        return getattr(nn, name)(*arguments, **keywords)  # type: ignore[no-any-return]
    except Exception as error:
        raise UsageError(
            f"torch.nn makes no layer of {text}: {' '.join(str(error).split())}",
            expected="arguments that torch.nn takes; sizes are read from the weights",
            fix="correct --head",
        ) from error


def _built_without_data(builder: Callable[..., nn.Module], keywords: Mapping[str, Any]) -> nn.Module:
    try:
        with parameters_on_meta():
            return builder(weights=None, **keywords)
    except ValueError as error:
        said = " ".join(str(error).split())
        raise UsageError(
            f"torchvision's {builder.__name__} cannot be built with {_listed(keywords)}: {said}",
            expected="options that the builder takes; an image size that each of its stages divides",
            fix="set the size that training had with --input-shape",
        ) from error
    except RuntimeError:
        # A builder that runs its network once to see how wide it is (ssdlite) needs data for that.
        return builder(weights=None, **keywords)


def _listed(keywords: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in keywords.items())


def left_on_meta(module: nn.Module, *, filled: Collection[str]) -> bool:
    """Whether a tensor lacks data and is not among the `filled` names: a buffer or attribute made from a parameter."""
    waiting = {id(tensor) for name, tensor in module.state_dict(keep_vars=True).items() if name in filled}
    held = [value for part in module.modules() for value in (*vars(part).values(), *part.buffers(recurse=False))]
    held += list(module.parameters())
    return any(isinstance(value, Tensor) and value.is_meta and id(value) not in waiting for value in held)


def complete(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with what a file may rightly leave out: counters, and all but one name of a shared parameter."""
    own = module.state_dict()
    full = dict(tensors)
    for names in _shared_names(module):
        present = next((name for name in names if name in full), None)
        if present is not None:
            full.update({name: full[present] for name in names if name not in full})
    full.update({name: tensor for name, tensor in own.items() if name.endswith(COUNTER) and name not in full})
    return {name: tensor for name, tensor in full.items() if name in own or not name.endswith(COUNTER)}


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module with `tensors` as its parameters and buffers, in eval mode and without gradients; nothing is copied.

    Raises UsageError if they do not fit strictly.
    """
    shared = _shared_names(module)
    state = OrderedDict(complete(module, tensors))
    # Names and shapes were compared with this release's module, so this release's layout versions hold: some builders
    # (mnasnet) refuse a state without them, and safetensors has no place for them.
    state._metadata = module.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise UsageError(
            f"the weights do not fit: {error}", expected="the checkpoint as it was when it was identified"
        ) from error
    for names in shared:
        _tie(module, names)
    return _for_inference(module)


def _for_inference(module: nn.Module) -> nn.Module:
    """The module in eval mode and without gradients, whatever a `train` of its own does or forgets to return."""
    module.eval()
    for part in module.modules() if module.training else ():
        part.training = False
    module.requires_grad_(False)
    return module


def _change_channels(module: nn.Module, path: str, channels: int) -> None:
    convolution = module.get_submodule(path)
    assert isinstance(convolution, nn.Conv2d | nn.Conv3d) and convolution.groups == 1
    shape = (convolution.out_channels, channels, *convolution.kernel_size)
    convolution.in_channels = channels
    convolution.weight = nn.Parameter(torch.empty(shape, device="meta"))


def _shared_names(module: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups[id(parameter)].append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tie(module: nn.Module, names: list[str]) -> None:
    """Make one parameter of those that assignment took apart, where they are views of the same memory."""
    first = module.get_parameter(names[0])
    for name in names[1:]:
        if module.get_parameter(name).data_ptr() == first.data_ptr():
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, first)
