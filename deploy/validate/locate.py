"""The place where a failed artifact goes wrong: its wiring, a packaged constant, the program, or an operator.

Owns the order of the search; each way of looking has a module of its own. Runs in a child. Called by run.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.checkpoint.model import Checkpoint
from deploy.convert.aoti import compile_aoti
from deploy.convert.flatten import flat_module
from deploy.convert.model import Device, Format, Program
from deploy.evidence import FaultPlace
from deploy.spec import Spec
from deploy.targets import Target
from deploy.validate.compare import as_rows
from deploy.validate.conditioning import explains, rounding_of
from deploy.validate.constants import find_wrong_constant
from deploy.validate.executables import AotiModel, Executable, OnnxModel
from deploy.validate.prefixes import find_wrong_operator
from deploy.validate.trace import Departure, find_departure, module_steps, onnx_values, program_values


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A failed artifact and the call that shows it: inputs, the reference's rows, and the largest error that passes.

    `allowed` is per output. `program` is the exported program where there is one. `device` is where it failed.
    """

    format: Format
    path: Path
    program: Program | None
    spec: Spec
    inputs: tuple[np.ndarray, ...]
    reference: tuple[np.ndarray, ...]
    allowed: tuple[float, ...]
    target: Target
    seconds: float
    device: Device = "cpu"

    def fits(self, outputs: Sequence[np.ndarray]) -> bool:
        """True if these outputs of the suspect's call are within the budget."""
        return all(self.output_fits(index, array) for index, array in enumerate(outputs))

    def output_fits(self, index: int, array: np.ndarray) -> bool:
        """True if `array` is what output `index` should be."""
        rows, wanted = as_rows(array, self.spec.outputs[index]).astype(np.float64), self.reference[index]
        if rows.shape != wanted.shape:
            return False
        with np.errstate(invalid="ignore"):
            return bool(np.all((rows == wanted) | (np.abs(rows - wanted) <= self.allowed[index])))


def locate(checkpoint: Checkpoint, suspect: Suspect) -> FaultPlace | None:
    """Where the artifact goes wrong, from the cheapest way of looking to the dearest; None if nothing was found."""
    started = time.monotonic()
    model = (AotiModel if suspect.format == "aoti" else OnnxModel)(suspect.path, threads=1, device=suspect.device)
    suspect = _narrowed(suspect, model)
    eager = flat_module(checkpoint)
    outputs = model.run(suspect.inputs)
    place = _find_wiring(suspect, outputs)
    if place is None and (suspect.format == "onnx" or suspect.device == "cpu"):
        # What reads an archive's constants loads its library, and is for the CPU only.
        place = find_wrong_constant(eager, suspect.format, suspect.path)
    place = place or _find_rounding(suspect, eager, outputs)
    if place:
        return place
    exact = flat_module(checkpoint, "float64")
    place = _find_in_program(suspect, exact, eager)
    if place or suspect.format == "onnx":
        return place or _find_in_graph(suspect, exact, eager)
    if suspect.program is None:
        return None
    left = suspect.seconds - (time.monotonic() - started)
    with TemporaryDirectory() as folder:
        compile = _compiler(suspect, Path(folder))
        return find_wrong_operator(suspect.program, suspect.inputs, compile=compile, seconds=left)


def _narrowed(suspect: Suspect, model: Executable) -> Suspect:
    """The suspect with one row that shows the failure by itself, where there is one: less to compute and to hold."""
    batch = suspect.spec.batch
    if batch is None or batch.minimum > 1:
        return suspect
    for row in range(len(suspect.reference[0])):
        single = replace(
            suspect,
            inputs=tuple(array[row : row + 1] for array in suspect.inputs),
            reference=tuple(array[row : row + 1] for array in suspect.reference),
        )
        if not single.fits(model.run(single.inputs)):
            return single
    return suspect


def _find_wiring(suspect: Suspect, outputs: Sequence[np.ndarray]) -> FaultPlace | None:
    """Outputs that are right but in the wrong places: exchanged with each other, or their classes shifted."""
    for index, array in enumerate(outputs):
        name = suspect.spec.outputs[index].name
        if suspect.output_fits(index, array):
            continue
        for other, tensor in enumerate(suspect.spec.outputs):
            if other != index and suspect.output_fits(other, array):
                message = f"output {name!r} holds the values of {tensor.name!r}: outputs are exchanged"
                return FaultPlace(kind="wiring", name=name, message=message, reproduced=True)
        for shift in (1, -1):
            if array.ndim > 1 and suspect.output_fits(index, np.roll(array, shift, axis=-1)):
                message = f"output {name!r} holds the right values shifted by one class along its last axis"
                return FaultPlace(kind="wiring", name=name, message=message, reproduced=True)
    return None


def _find_rounding(suspect: Suspect, eager: Any, outputs: Sequence[np.ndarray]) -> FaultPlace | None:
    """A network that answers otherwise once its values are rounded otherwise: there is no operator to be found."""
    rounding = rounding_of(eager, suspect.inputs)
    errors = [
        float(np.abs(as_rows(array, tensor).astype(np.float64) - wanted).max(initial=0.0))
        for array, tensor, wanted in zip(outputs, suspect.spec.outputs, suspect.reference, strict=True)
    ]
    if rounding is None or not explains(rounding, errors, suspect.allowed):
        return None
    begins = f", first in {rounding.place}" if rounding.place else ""
    message = (
        f"eager's own answer moves by {max(rounding.moves):.2g} once each of its values is rounded once more: on this "
        f"input the network makes answers of rounding errors{begins}. It does so in eager too, wherever "
        "such an input comes, such as silence or one colour; a larger number beside what it divides by mends that"
    )
    return FaultPlace(kind="rounding", name="of the network's own", message=message, reproduced=True)


def _find_in_program(suspect: Suspect, exact: Any, eager: Any) -> FaultPlace | None:
    """A program that is wrong before anything is compiled from it."""
    if suspect.program is None:
        return None
    values, outputs = program_values(suspect.program, suspect.inputs)
    if suspect.fits(outputs):
        return None
    departure = find_departure(module_steps(exact, eager, suspect.inputs), values)
    return _departure_place("exported program", departure)


def _find_in_graph(suspect: Suspect, exact: Any, eager: Any) -> FaultPlace:
    values, outputs = onnx_values(suspect.path, suspect.inputs)
    if suspect.fits(outputs):
        message = "the graph is right when ONNX Runtime does not optimise it: one of its optimisations goes wrong"
        return FaultPlace(kind="ONNX Runtime", name="graph optimisation", message=message, reproduced=True)
    return _departure_place("ONNX graph", find_departure(module_steps(exact, eager, suspect.inputs), values))


def _departure_place(where: str, departure: Departure) -> FaultPlace:
    if departure.module is None:
        message = f"every module's output is in the {where}; it goes wrong after {departure.after}"
        return FaultPlace(kind=where, name=departure.after, message=message, reproduced=True)
    module = departure.module
    nearest = f"; nearest is {departure.nearest}, {departure.error:.2g} off" if departure.nearest else ""
    message = f"the {where} has what {departure.after} computes, but not {module.name} {module.module}{nearest}"
    return FaultPlace(kind=where, name=module.name, message=message, reproduced=True)


def _compiler(suspect: Suspect, folder: Path) -> Callable[[Any], Any]:
    """Compiles an exported program in `folder` as the artifact was compiled, and loads it."""

    def compile(exported: Any) -> Any:
        import torch
        from torch._inductor import aoti_load_package

        path = folder / "program.pt2"
        torch.export.save(exported, path)
        program = Program(path=path, spec=suspect.spec, digest="", seconds=0.0, peak_memory=0, device=suspect.device)
        return aoti_load_package(str(compile_aoti(program, target=suspect.target, folder=folder).path))

    return compile
