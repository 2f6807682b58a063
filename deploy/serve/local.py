"""What the local engine needs round it: a backend folder, an environment, and configs that its core accepts.

Owns every difference between what is published and what the local engine reads, and puts it into words. Called by
server, serving, parity, and by tune. A native engine reads the published configs as they are.
"""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deploy.errors import MissingError
from deploy.files import relative_files, sha256_file
from deploy.gpu import EXACT_FLOAT32, LocalGpu, gpu_folders, visible_gpu
from deploy.repository.find import read_manifest
from deploy.repository.layout import CONFIG_FILE, Version, is_artifact_file
from deploy.repository.protobuf import parse_config, schema
from deploy.repository.view import make_view
from deploy.serve import backends, vllm
from deploy.serve.engines import LIBRARIES, SERVER, Engine
from deploy.serve.parameters import DEVICE_PARAMETER, DIGEST_PARAMETER
from deploy.serve.python_environment import ENVIRONMENT_PARAMETER, find_python_environment

_ONNXRUNTIME = "onnxruntime"
_BACKENDS = (_ONNXRUNTIME, "pytorch", "vllm")
_CUDA_LIBRARY = "capi/libonnxruntime_providers_cuda.so"
_PYTHON = "python"
_RUNTIME = "model.py"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the kernel's shared memory, looked at only
# A region starts with one megabyte and holds a batch's inputs and outputs, and both again while it grows.
_REGION_BYTES = 1024 * 1024
_COPIES = 3

# A request of some hundred kB takes a block of its own from the kernel and gives it back: page by page, each time. The
# allocator keeps such blocks instead. Measured by benchmarks/serving_overhead.py; mallopt(3) has the names.
KEPT_PAGES = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}


def served_view(folder: Path, versions: Sequence[Version], engine: Engine) -> Path:
    """`folder` as a repository of links that `engine` can serve, with exactly these versions.

    Raises MissingError if this machine's shared memory is too small for the local engine.
    """
    if engine.kind == "native":
        return make_view(folder, versions)
    view = make_view(folder, versions, adapt=adapt)
    check_shared_memory([parse_config((view / version.name / CONFIG_FILE).read_text()) for version in versions])
    return view


def adapt(version: Version, config: Any, gpu: LocalGpu | None = None) -> Any:
    """The config that the local engine reads: a python-based backend instead of a C++ one, and the digests to check.

    A model that the config puts on a GPU is told so where the runtime here computes on one (`gpu`, by default the one
    that is here): its backend loads it there, while the core, which has no CUDA, sees an instance on CPU. An ensemble
    stays as it is; a model of the python backend gets the numpy that this engine's stub was built for.
    Raises MissingError without that.
    """
    adapted = schema().ModelConfig()
    adapted.CopyFrom(config)
    if adapted.platform == "ensemble":
        return adapted
    if adapted.backend == _PYTHON:
        adapted.parameters[ENVIRONMENT_PARAMETER].string_value = str(find_python_environment())
        return adapted
    # Named, so that the core never looks for a shared library inside the model's own folder.
    adapted.runtime = _RUNTIME
    if adapted.platform == "torch_aoti":
        # Core 2.51 knows the word not yet, and takes the backend's name alone.
        adapted.platform = ""
    on_gpu = _move_to_cpu(adapted)
    if on_gpu and computes_on_gpu(adapted.backend, gpu or visible_gpu()):
        for name, value in {**_accelerators(config), DEVICE_PARAMETER: "cuda"}.items():
            adapted.parameters[name].string_value = value
    # Core 2.51 has no such histogram, and refuses a config that names it.
    adapted.ClearField("model_metrics")
    if adapted.backend == vllm.BACKEND:
        for name, value in vllm.parameters(version, dict(_digests(version))).items():
            adapted.parameters[name].string_value = value
        return adapted
    for name, digest in _digests(version):
        adapted.parameters[f"{DIGEST_PARAMETER}{version.number}/{name}"].string_value = digest
    return adapted


def computes_on_gpu(backend: str, gpu: LocalGpu | None) -> bool:
    """Whether this environment's runtime of the backend runs on the GPU here: ONNX Runtime by its build for CUDA.

    An archive for a GPU runs nowhere else, so torch need not be asked.
    """
    if gpu is None or backend == vllm.BACKEND:
        return False
    return backend != _ONNXRUNTIME or _has_cuda_provider()


def _has_cuda_provider() -> bool:
    """Whether the installed ONNX Runtime brings the provider's library; it is not imported."""
    spec = find_spec(_ONNXRUNTIME)
    return spec is not None and spec.origin is not None and (Path(spec.origin).parent / _CUDA_LIBRARY).is_file()


def _accelerators(config: Any) -> dict[str, str]:
    """What the config tells its accelerators on a GPU, by the names of a session's options."""
    return {
        f"{entry.name}.{name}": value
        for entry in config.optimization.execution_accelerators.gpu_execution_accelerator
        for name, value in entry.parameters.items()
    }


def _move_to_cpu(config: Any) -> bool:
    """Its instances on CPU, the only kind that this engine's core has; whether one was on a GPU."""
    kinds = schema().ModelInstanceGroup
    moved = any(group.kind == kinds.KIND_GPU for group in config.instance_group)
    for group in config.instance_group:
        if group.kind == kinds.KIND_GPU:
            group.kind = kinds.KIND_CPU
            group.ClearField("gpus")
    if config.optimization.HasField("execution_accelerators"):
        config.optimization.ClearField("execution_accelerators")
        if not config.optimization.ByteSize():
            config.ClearField("optimization")
    return moved


def config_difference(version: Version, engine: Engine) -> tuple[str, ...]:
    """What the served config has otherwise than the published one, one line per field; empty for a native engine."""
    if engine.kind == "native":
        return ()
    published = parse_config(version.config.read_text())
    return tuple(_differences(published, adapt(version, published)))


def _differences(before: Any, after: Any) -> Iterator[str]:
    for field in before.DESCRIPTOR.fields:
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if field.name == "parameters":
            yield from _added(sorted(set(new) - set(old)))
        else:
            yield f"{field.name}: {_in_one_line(old)} -> {_in_one_line(new)}"


def _added(names: Sequence[str]) -> Iterator[str]:
    """What became of the parameters; a version may have dozens of files, whose digests are one matter."""
    digests = [name for name in names if name.startswith(DIGEST_PARAMETER)]
    yield from (f"parameters: {name} added" for name in names if name not in digests or len(digests) == 1)
    if len(digests) > 1:
        yield f"parameters: {DIGEST_PARAMETER.rstrip(':')} of {len(digests)} files added"


def _in_one_line(value: Any) -> str:
    """A field's value as it stands in a config, `unset` where it has none."""
    return " ".join(str(value).split()) or "unset" if value else "unset"


def _digests(version: Version) -> Iterator[tuple[str, str]]:
    """The artifact's files and digests: from the manifest, or of the files themselves while there is none yet."""
    if version.manifest.is_file():
        entries = [(entry.path, entry.sha256) for entry in read_manifest(version).files]
        yield from ((path, digest) for path, digest in entries if is_artifact_file(path))
    else:
        paths = [path for path in relative_files(version.folder) if is_artifact_file(path)]
        yield from ((path, sha256_file(version.folder / path)) for path in paths)


def check_shared_memory(configs: Sequence[Any]) -> None:
    """Raises MissingError if /dev/shm has no room for what the models' largest batches take."""
    needed = sum(_region_bytes(config) for config in configs)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if free < needed:
        raise MissingError(
            f"{_SHARED_MEMORY} has {free / 1e6:.0f} MB free",
            expected=f"{needed / 1e6:.0f} MB for the largest batches of the served models",
            fix="give the container more (`docker run --shm-size=1g`, or an emptyDir with `medium: Memory`)",
        )


def _region_bytes(config: Any) -> int:
    """Shared memory of a model's instances; a dimension without a bound counts once."""
    instances = max(1, sum(group.count for group in config.instance_group))
    elements = sum(math.prod(max(1, size) for size in tensor.dims) for tensor in (*config.input, *config.output))
    batch = max(1, config.max_batch_size)
    needed: int = instances * (_REGION_BYTES + _COPIES * 8 * batch * elements)
    return needed


def surroundings(engine: Engine, folder: Path, *, patience: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """The arguments and the environment that an engine needs beside its command line, made in `folder` once.

    `patience` is how many seconds a stub is given to begin. Raises MissingError if a program could not run here.
    """
    if engine.kind == "native":
        return (), {**KEPT_PAGES, **os.environ, **EXACT_FLOAT32}
    backend_folder, libraries = folder / "backends", folder / "lib"
    if not backend_folder.exists():
        fill_backend_folder(engine, backend_folder)
        fill_library_folder(engine, libraries)
    variables = environment(engine, libraries)
    check_programs((engine.executable, backend_folder / "python" / engine.stub.name), variables)
    return (
        f"--backend-directory={backend_folder}",
        f"--backend-config=python,stub-timeout-seconds={patience}",
    ), variables


def fill_backend_folder(engine: Engine, folder: Path) -> None:
    """Put the python backend, the stub of the running Python, and our python-based backends into `folder`."""
    assert engine.root is not None
    python = folder / "python"
    python.mkdir(parents=True)
    for source in (*(engine.root / SERVER / "backends" / "python").iterdir(), engine.stub):
        # Not symbolic links: the core refuses a library whose real path lies outside its backend's folder.
        shutil.copy(source, python)
    for name in _BACKENDS:
        shutil.copytree(
            Path(backends.__file__).parent / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )


def fill_library_folder(engine: Engine, folder: Path) -> None:
    """Link libpython into `folder`: the one it lies in may hold other libraries that the server must not meet."""
    folder.mkdir()
    if engine.libpython is not None:
        (folder / engine.libpython.name).symlink_to(engine.libpython)


def environment(engine: Engine, libraries: Path) -> dict[str, str]:
    """The environment in which the server's stub finds this Python, its packages and its shared library.

    How the allocator keeps memory is said where the caller's own environment does not.
    """
    assert engine.root is not None
    changed = {
        "LD_LIBRARY_PATH": os.pathsep.join((str(engine.root / LIBRARIES), str(libraries), *gpu_folders(os.environ))),
        # The embedded interpreter finds its home by the first python3 on PATH: that of this environment.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
        **EXACT_FLOAT32,
    }
    return {**KEPT_PAGES, **os.environ, **changed}


def check_programs(programs: Sequence[Path], variables: dict[str, str]) -> None:
    """Raises MissingError if one of the programs may not run, or would not find a shared library.

    Without this the server waits its whole stub timeout for a stub that never began.
    """
    for program in programs:
        # The dynamic linker lists what it would load and does not start the program; `ldd` does the same.
        tracing = variables | {"LD_TRACE_LOADED_OBJECTS": "1"}
        try:
            listed = subprocess.run([program], env=tracing, capture_output=True, text=True, check=False)
        except PermissionError as error:
            raise MissingError(
                f"{program} may not be executed",
                expected="a folder for temporary files that is not mounted noexec",
                fix="set TMPDIR to a folder where programs may run",
            ) from error
        missing = [line.split()[0] for line in listed.stdout.splitlines() if line.endswith("not found")]
        if missing:
            raise MissingError(
                f"{program.name} needs {', '.join(missing)}, which this machine lacks",
                fix="install the system package that holds it, or install the engine again",
            )
