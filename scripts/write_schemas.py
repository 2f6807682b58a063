"""Writes the schemas of the custom resources that tests validate manifests against: tests/kubernetes/schemas.json.

    npm pack @kubernetes-models/argo-rollouts@2.0.0
                         (and argo-workflows@2.0.0, keda@2.0.0, prometheus-operator@6.0.0: all MIT)
    pip download --no-deps kserve==0.21.0               (Apache-2.0)
    python scripts/write_schemas.py FOLDER              where these archives lie

Those packages are generated from the projects' own Go types. Kept are the fields of what the given kinds reach, with
their types and whether they are required; what Kubernetes itself defines is left to kubernetes-validate. Patterns,
defaults and rules across fields are not in them.
"""

import ast
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parent.parent / "tests" / "kubernetes" / "schemas.json"
KUBERNETES = "kubernetes:"
"""A reference that begins so is to a definition of Kubernetes itself."""

PACKAGES = {
    "kubernetes-models-argo-rollouts-2.0.0.tgz": "@kubernetes-models/argo-rollouts 2.0.0 (MIT)",
    "kubernetes-models-argo-workflows-2.0.0.tgz": "@kubernetes-models/argo-workflows 2.0.0 (MIT)",
    "kubernetes-models-keda-2.0.0.tgz": "@kubernetes-models/keda 2.0.0 (MIT)",
    "kubernetes-models-prometheus-operator-6.0.0.tgz": "@kubernetes-models/prometheus-operator 6.0.0 (MIT)",
    "kserve-0.21.0-py3-none-any.whl": "kserve 0.21.0 (Apache-2.0)",
}
_ARGO = "ComGithubArgoprojArgoRolloutsPkgApisRolloutsV1alpha1"
_WORKFLOWS = "ComGithubArgoprojArgoWorkflowsV4PkgApisWorkflowV1alpha1"
_MONITORING = "ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1"
KINDS = {
    "argoproj.io/v1alpha1/Rollout": f"{_ARGO}Rollout",
    "argoproj.io/v1alpha1/AnalysisTemplate": f"{_ARGO}AnalysisTemplate",
    "argoproj.io/v1alpha1/WorkflowTemplate": f"{_WORKFLOWS}WorkflowTemplate",
    "keda.sh/v1alpha1/ScaledObject": "ComGithubKedacoreKedaV2ApisKedaV1alpha1ScaledObject",
    "monitoring.coreos.com/v1/PodMonitor": f"{_MONITORING}PodMonitor",
    "monitoring.coreos.com/v1/PrometheusRule": f"{_MONITORING}PrometheusRule",
    "serving.kserve.io/v1alpha1/ServingRuntime": "V1alpha1ServingRuntime",
    "serving.kserve.io/v1beta1/InferenceService": "V1beta1InferenceService",
}

_FIELD = re.compile(
    r'^    "(?P<name>[^"]+)"(?P<optional>\?)?: (?P<type>\{\n.*?\n    \}|[^\n]*?);$', re.MULTILINE | re.DOTALL
)
_BASES = "extends"
_LINES = re.MULTILINE | re.DOTALL
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_SIMPLE: dict[str, Any] = {
    "string": {"type": "string"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "any": {},
    "{}": {"type": "object"},
}
_OF_PYTHON: dict[str, Any] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "datetime": {"type": "string"},
}

Schema = dict[str, Any]


def main(folder: Path) -> int:
    """Write the file; 2 if the archives are not there."""
    lacking = [name for name in PACKAGES if not (folder / name).is_file()]
    if lacking:
        print(f"error: {folder} lacks {', '.join(lacking)}; see the top of {Path(__file__).name}", file=sys.stderr)
        return 2
    known: dict[str, Schema] = {}
    for name in PACKAGES:
        known |= dict(_from_wheel(folder / name) if name.endswith(".whl") else _from_package(folder / name))
    kept: dict[str, Schema] = {}
    for name in KINDS.values():
        # Controllers write the status, manifests do not.
        known[name]["properties"].pop("status", None)
        _keep(name, known, kept)
    document = {"from": list(PACKAGES.values()), "kinds": KINDS, "definitions": dict(sorted(kept.items()))}
    OUTPUT.write_text(json.dumps(document, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    print(f"{OUTPUT}: {len(kept)} definitions")
    return 0


def _keep(name: str, known: dict[str, Schema], kept: dict[str, Schema]) -> None:
    """Add a definition and everything that it refers to."""
    if name in kept or name.startswith(KUBERNETES):
        return
    if name not in known and name.startswith("V1"):
        # KServe's SDK names a few types that it does not bring along: nothing can be said of them.
        kept[name] = {}
        return
    kept[name] = _with_inherited(known[name], known)
    for reference in _references(kept[name]):
        _keep(reference, known, kept)


def _with_inherited(schema: Schema, known: dict[str, Schema]) -> Schema:
    """The schema with the fields of those that its interface extends."""
    own = {key: value for key, value in schema.items() if key != _BASES}
    for base in schema.get(_BASES, ()):
        inherited = _with_inherited(known[base], known)
        if "properties" not in inherited:
            # A base that may hold anything, as Argo's plugins do.
            own["additionalProperties"] = True
            continue
        own["properties"] = inherited["properties"] | own["properties"]
        own["required"] = [*inherited["required"], *own["required"]]
    return own


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix("#/definitions/")
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _from_package(path: Path) -> Iterator[tuple[str, Schema]]:
    """The interfaces of a package of TypeScript types, by the name that other files import them under."""
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            stream = archive.extractfile(member) if member.name.endswith(".d.ts") else None
            text = _COMMENT.sub("", stream.read().decode()) if stream else ""
            alias = re.search(r"^export type \{ I(\w+) as I(\w+),", text, re.MULTILINE)
            if alias is None:
                continue
            pattern = rf"^export interface I{alias[1]}(?: extends ([\w, ]+))? \{{\n(.*?)^\}}"
            if body := re.search(pattern, text, re.MULTILINE | re.DOTALL):
                bases = [base[1:] for base in (body[1] or "").split(", ") if base.startswith("ICom")]
                yield alias[2], {**_object(body[2]), _BASES: bases}
            elif same := re.search(rf"^export type I{alias[1]} = (\{{\n.*?^\}}|.*?);", text, _LINES):
                yield alias[2], _of_typescript(same[1])


def _object(body: str) -> Schema:
    fields = list(_FIELD.finditer(body))
    return {
        "type": "object",
        "properties": {field["name"]: _of_typescript(field["type"]) for field in fields},
        "required": [field["name"] for field in fields if not field["optional"]],
        "additionalProperties": False,
    }


def _of_typescript(text: str) -> Schema:  # noqa: PLR0911 - one form of a type each
    text = " ".join(text.split())
    if text in _SIMPLE:
        return dict(_SIMPLE[text])
    if text.startswith("Array<"):
        return {"type": "array", "items": _of_typescript(text[len("Array<") : -1])}
    if match := re.fullmatch(r"\{ \[key: string\]: (.*?);? \}", text):
        return {"type": "object", "additionalProperties": _of_typescript(match[1])}
    if match := re.fullmatch(r"I(IoK8s\w+)", text):
        return _of_kubernetes(match[1])
    if match := re.fullmatch(r"I(Com\w+)", text):
        return {"$ref": f"#/definitions/{match[1]}"}
    options = text.split(" | ")
    if all(option.startswith('"') for option in options):
        return {"enum": [json.loads(option) for option in options]}
    if len(options) > 1:
        return {"anyOf": [_of_typescript(option) for option in options]}
    raise ValueError(f"no schema for the type {text}")


def _of_kubernetes(name: str) -> Schema:
    """`IoK8sApiCoreV1Container` is `io.k8s.api.core.v1.Container` there; JSON may be anything."""
    if name.endswith("V1JSON"):
        return {}
    words = re.findall(r"K8s|V\d+(?:(?:alpha|beta)\d+)?|[A-Z][a-z0-9]+|[A-Z]+(?![a-z])", name)
    version = next((index for index, word in enumerate(words) if re.fullmatch(r"V\d.*", word)), None)
    cut = version + 1 if version is not None else len(words) - _tail(words)
    path = ".".join(word.lower() for word in words[:cut])
    return {"$ref": f"{KUBERNETES}{path}.{''.join(words[cut:])}"}


def _tail(words: list[str]) -> int:
    """How many words are the type's name where no version tells: IntOrString, Quantity."""
    return 3 if words[-3:] == ["Int", "Or", "String"] else 1


def _from_wheel(path: Path) -> Iterator[tuple[str, Schema]]:
    """The models of KServe's SDK, read without running them: their types, names in JSON, and what may not be None."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("kserve/models/v1"):
                for node in ast.parse(archive.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        yield node.name, _model(node)


def _model(node: ast.ClassDef) -> Schema:
    tables = {
        target.id: ast.literal_eval(statement.value)
        for statement in node.body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    names: dict[str, str] = tables["attribute_map"]
    required = set(_refusals(node))
    return {
        "type": "object",
        "properties": {names[field]: _of_python(kind) for field, kind in tables["openapi_types"].items()},
        "required": [names[field] for field in names if field in required],
        "additionalProperties": False,
    }


def _refusals(node: ast.ClassDef) -> Iterator[str]:
    """The fields whose setters refuse None."""
    texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))
    found = (re.match(r"Invalid value for `(\w+)`, must not be `None`", text) for text in texts)
    yield from (match[1] for match in found if match)


def _of_python(kind: str) -> Schema:  # noqa: PLR0911 - one form of a type each
    if kind in _OF_PYTHON:
        return dict(_OF_PYTHON[kind])
    if match := re.fullmatch(r"list\[(.*)\]", kind):
        return {"type": "array", "items": _of_python(match[1])}
    if match := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {"type": "object", "additionalProperties": _of_python(match[1])}
    if kind in ("V1ObjectMeta", "V1LabelSelector"):
        return {"$ref": f"{KUBERNETES}io.k8s.apimachinery.pkg.apis.meta.v1.{kind[2:]}"}
    if kind == "ResourceQuantity":
        return {"$ref": f"{KUBERNETES}io.k8s.apimachinery.pkg.api.resource.Quantity"}
    if match := re.fullmatch(r"V1([A-Z]\w+)", kind):
        return {"$ref": f"{KUBERNETES}io.k8s.api.core.v1.{match[1]}"}
    if kind.startswith(("V1alpha1", "V1beta1")):
        return {"$ref": f"#/definitions/{kind}"}
    # A status, of which nobody writes a manifest.
    return {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
