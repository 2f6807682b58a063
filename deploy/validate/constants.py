"""The constants packaged in an artifact against the checkpoint's own.

Owns reading them from both formats, and knowing which changes a converter makes on purpose: it folds a batch
normalisation into the convolution before it. Runs in a child. Called by locate.
"""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.convert.model import Format
from deploy.evidence import FaultPlace
from deploy.validate.tensors import difference, relative_error

_FOLDED = 1e-5
_NEAR = 0.2
_TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """A batch normalisation's constants, in float64."""

    name: str
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    epsilon: float

    def scales(self, epsilon: float) -> np.ndarray:
        """What folding multiplies each output channel by."""
        scales: np.ndarray = self.weight / np.sqrt(np.maximum(self.variance + epsilon, _TINY))
        return scales

    def fold_bias(self, bias: np.ndarray) -> np.ndarray:
        """A convolution's bias with this normalisation folded into it."""
        folded: np.ndarray = (bias - self.mean) * self.scales(self.epsilon) + self.bias
        return folded


def find_wrong_constant(module: Any, format: Format, path: Path) -> FaultPlace | None:
    """The packaged constant that is not the eager module's, or how many; None if all that can be compared are equal."""
    # Buffers too that no state_dict holds: the mean and the standard deviation of fused preprocessing are such.
    tensors = dict(module.named_buffers()) | module.state_dict()
    wanted = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    packaged = packaged_constants(format, path)
    pairs = dict(_pairs(wanted, packaged))
    folds = list(_normalisations(module))
    wrong = {name: text for name, (own, found) in pairs.items() if (text := _problem(own, found, folds))}
    if wrong:
        return _place(wrong, compared=len(pairs))
    missing = [name for name in _must_remain(module) if name not in pairs and not _held(wanted[name], packaged)]
    lost = missing[0] if missing and format == "onnx" else None
    if lost is None:
        return None
    return FaultPlace(kind="constant", name=lost, message=f"{lost} is not in the artifact at all", reproduced=True)


def packaged_constants(format: Format, path: Path) -> dict[str, np.ndarray]:
    """The floating-point constants in an artifact by name; empty where this torch cannot read an archive's."""
    return _onnx_constants(path) if format == "onnx" else _aoti_constants(path)


def _onnx_constants(path: Path) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    arrays = {item.name: numpy_helper.to_array(item, base_dir=str(path.parent)) for item in model.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


def _aoti_constants(path: Path) -> dict[str, np.ndarray]:
    """Read through the archive's own library: only the compiler knows in which order the weights lie."""
    import torch

    runner_type: Any = torch._C._aoti.AOTIModelContainerRunnerCpu
    if not hasattr(runner_type, "update_constant_buffer_from_blob"):
        return {}
    with TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        found = {}
        for name in archive.namelist():
            if name.endswith((".so", ".blob")):
                found[Path(name).suffix] = archive.extract(name, folder)
        if ".so" not in found:
            return {}
        runner = runner_type(found[".so"], 1)
        if ".blob" in found:
            runner.update_constant_buffer_from_blob(found[".blob"])
        tensors = runner.extract_constants_map(False)
        return {name: tensor.clone().numpy() for name, tensor in tensors.items() if tensor.is_floating_point()}


def _pairs(
    wanted: Mapping[str, np.ndarray], packaged: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
    """Each of the checkpoint's tensors with its packaged form: of the same name, else the nearest nameless one."""
    named = {_bare(name): array for name, array in packaged.items()}
    nameless = [array for name, array in packaged.items() if _bare(name) not in wanted]
    for name, own in wanted.items():
        if own.dtype.kind != "f":
            continue
        if name in named:
            yield name, (own, named[name])
            continue
        alike = [array for array in nameless if array.shape in (own.shape, own.shape[::-1]) and own.ndim == 2]
        oriented = [array if array.shape == own.shape else array.T for array in alike]
        if oriented:
            nearest = min(oriented, key=lambda array: relative_error(own, array))
            if relative_error(own, nearest) < _NEAR:
                yield name, (own, nearest)


def _held(own: np.ndarray, packaged: Mapping[str, np.ndarray]) -> bool:
    """True if the values are there under any name: equal constants are stored once."""
    return any(array.shape == own.shape and difference(own, array) is None for array in packaged.values())


def _bare(name: str) -> str:
    """A constant's name without the wrapper that flattens inputs and outputs."""
    return name.removeprefix("module.")


def _normalisations(module: Any) -> Iterator[Normalisation]:
    for name, child in module.named_modules():
        held: list[Any] = [getattr(child, part, None) for part in ("weight", "bias", "running_mean", "running_var")]
        if all(part is not None for part in held):
            weight, bias, mean, variance = (part.detach().numpy().astype(np.float64) for part in held)
            yield Normalisation(
                name=name, weight=weight, bias=bias, mean=mean, variance=variance, epsilon=float(child.eps)
            )


def _problem(own: np.ndarray, found: np.ndarray, folds: Sequence[Normalisation]) -> str:
    """What is wrong with a constant, which may have a normalisation of as many channels folded into it."""
    plain = difference(own, found)
    if plain is None or plain.named or own.ndim == 2:
        return plain.words if plain else ""
    fitting = [fold for fold in folds if fold.weight.shape == own.shape[:1]]
    if own.ndim == 1:
        return "" if any(relative_error(fold.fold_bias(own), found) <= _FOLDED for fold in fitting) else plain.words
    unfolded = [difference(own, found / _channels(fold.scales(fold.epsilon), own)) for fold in fitting]
    if None in unfolded:
        return ""
    wrong = [plain, *(item for item in unfolded if item)]
    named = next((item.words for item in wrong if item.named), "")
    return named or _wrong_epsilon(own, found, fitting) or min(wrong, key=lambda item: item.error).words


def _channels(scales: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """One factor per output channel, in a shape that multiplies the weight."""
    return scales.reshape(-1, *[1] * (weight.ndim - 1))


def _wrong_epsilon(own: np.ndarray, found: np.ndarray, folds: Sequence[Normalisation]) -> str:
    """The epsilon that explains the folded weight, where one does."""
    left, right = own.reshape(len(own), -1).astype(np.float64), found.reshape(len(found), -1).astype(np.float64)
    ratio = (left * right).sum(axis=1) / np.maximum((left * left).sum(axis=1), _TINY)
    # A channel with next to no scale says nothing, and would divide by zero.
    telling = np.abs(ratio) > 1e-6 * np.abs(ratio).max()
    for fold in folds:
        epsilon = float(np.median((fold.weight[telling] / ratio[telling]) ** 2 - fold.variance[telling]))
        if relative_error(own, found / _channels(fold.scales(epsilon), own)) <= _FOLDED:
            return f"is folded with an epsilon of {epsilon:.2g}; {fold.name} in the checkpoint has {fold.epsilon:g}"
    return ""


def _must_remain(module: Any) -> Iterator[str]:
    """The constants that no conversion folds away: those of linear layers."""
    import torch

    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Linear):
            yield from (f"{name}.{part}".removeprefix(".") for part, _ in child.named_parameters(recurse=False))


def _place(wrong: Mapping[str, str], *, compared: int) -> FaultPlace:
    name, text = next(iter(wrong.items()))
    message = f"{name} {text}"
    if len(wrong) > 1:
        message = f"{len(wrong)} of {compared} packaged constants are not the checkpoint's: {message}"
    if len(wrong) > compared / 2 and "rounded" not in text:
        message += "; most differ: are these the weights of another training run?"
    return FaultPlace(kind="constant", name=name, message=message, reproduced=True)
