"""What a version is made of, as a CycloneDX 1.6 machine-learning bill of materials.

Owns which fact stands where; all of them come from the manifest and the evidence, and what is unknown is left out: the
data it was trained on, above all. Called by sign. Imports cyclonedx on use.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from deploy import __version__
from deploy.convert.model import ARTIFACT_FILES
from deploy.latency_evidence import LatencyEvidence
from deploy.release.provenance import package_url, packages
from deploy.report.findings import Packaged, read_packaged
from deploy.repository.layout import Version, is_artifact_file
from deploy.repository.manifest import Manifest, created_now, version_digest
from deploy.spec import TensorSpec

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

_FRAMEWORKS = ("torch", "onnxruntime")


def make_bom(version: Version, manifest: Manifest) -> bytes:
    """The bill of materials as JSON; equal versions give equal bytes under SOURCE_DATE_EPOCH."""
    from cyclonedx.output.json import JsonV1Dot6

    bom = _bom(version, manifest)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library knows the type of component, and not its card.
    document["metadata"]["component"]["modelCard"] = model_card(manifest, read_packaged(version.folder, manifest))
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def model_card(manifest: Manifest, packaged: Packaged) -> dict[str, Any]:
    """What the model is, takes, gives and was measured at."""
    parameters: dict[str, Any] = {
        "modelArchitecture": manifest.checkpoint.architecture,
        "inputs": [{"format": _tensor(tensor)} for tensor in manifest.spec.inputs],
        "outputs": [{"format": _tensor(tensor)} for tensor in manifest.spec.outputs],
    }
    if manifest.classes is not None:
        parameters["task"] = "classification"
    metrics = [*_parity(packaged), *(_latency(packaged.latency, manifest.format) if packaged.latency else ())]
    return {
        "modelParameters": parameters,
        **({"quantitativeAnalysis": {"performanceMetrics": metrics}} if metrics else {}),
        "considerations": {"technicalLimitations": list(_limitations(manifest))},
        "properties": [{"name": f"deployctl:{name}", "value": value} for name, value in _properties(manifest)],
    }


def _bom(version: Version, manifest: Manifest) -> "Bom":
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository

    digest = version_digest(version.folder)
    artifact = {entry.path: entry.sha256 for entry in manifest.files if _is_artifact(entry.path, manifest)}
    root = Component(
        name=version.name,
        version=str(version.number),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=str(version),
        hashes=[_sha256(one) for one in artifact.values()] if len(artifact) == 1 else [],
    )
    parts = [*_files(manifest, artifact), *_steps(manifest), *_libraries(manifest), *_containers(manifest)]
    tools = [
        Component(name=name, version=known, type=ComponentType.APPLICATION, bom_ref=f"tool:{name}")
        for name, known in {
            "deployctl": __version__,
            "cyclonedx-python-lib": installed_version("cyclonedx-python-lib"),
        }.items()
    ]
    metadata = BomMetaData(
        component=root, tools=ToolRepository(components=tools), timestamp=datetime.fromisoformat(created_now())
    )
    bom = Bom(
        components=parts, metadata=metadata, serial_number=uuid5(NAMESPACE_URL, f"urn:deployctl:version:{digest}")
    )
    bom.register_dependency(root, parts)
    return bom


def _files(manifest: Manifest, artifact: dict[str, str]) -> "Iterator[Component]":
    """The compiled files, and the checkpoint whose weights they hold."""
    from cyclonedx.model.component import Component, ComponentType

    checkpoint = manifest.checkpoint
    yield Component(
        name=checkpoint.file,
        type=ComponentType.FILE,
        bom_ref="checkpoint",
        description=f"the checkpoint: {checkpoint.parameters} parameters in {checkpoint.dtype}, as {checkpoint.format}",
        hashes=[_sha256(checkpoint.sha256)],
    )
    for path, digest in artifact.items():
        yield Component(
            name=path,
            type=ComponentType.FILE,
            bom_ref=f"file:{path}",
            description=f"{'a file of ' if len(artifact) > 1 else ''}the {manifest.format} artifact, with the weights",
            hashes=[_sha256(digest)],
        )


def _steps(manifest: Manifest) -> "Iterator[Component]":
    """The versions that an ensemble runs, each with the digest of its manifest, which holds those of its files."""
    from cyclonedx.model.component import Component, ComponentType

    for step in manifest.steps:
        yield Component(
            name=step.model,
            version=str(step.version),
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=f"step:{step}",
            description="a step of the ensemble, by the digest of its manifest",
            hashes=[_sha256(step.digest)],
        )


def _libraries(manifest: Manifest) -> "Iterator[Component]":
    """What the version was built with."""
    from cyclonedx.model.component import Component, ComponentType

    for name, version in packages(manifest.environment).items():
        url = package_url(name, version)
        kind = ComponentType.FRAMEWORK if name in _FRAMEWORKS else ComponentType.LIBRARY
        yield Component(name=name, version=version, type=kind, purl=url, bom_ref=str(url))


def _containers(manifest: Manifest) -> "Iterator[Component]":
    """The image that the version is meant to be served by; which bytes its tag means is not known here."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    image = manifest.target.container
    if image is None:
        return
    path, _, tag = image.rpartition(":")
    registry, _, repository = path.partition("/")
    namespace, _, name = repository.rpartition("/")
    url = PackageURL(
        type="docker", namespace=namespace, name=name, version=tag, qualifiers={"repository_url": registry}
    )
    yield Component(name=path, version=tag, type=ComponentType.CONTAINER, purl=url, bom_ref=str(url))


def _sha256(digest: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _is_artifact(path: str, manifest: Manifest) -> bool:
    if manifest.format == "vllm":
        # Its weights lie beside the file that names them.
        return is_artifact_file(path)
    main = "model.py" if manifest.format in ("python", "ensemble") else ARTIFACT_FILES[manifest.compiled]
    return path == main or path.startswith(f"{main}/")


def _tensor(tensor: TensorSpec) -> str:
    return f"{tensor.name}: {tensor.dtype} [{', '.join(map(str, tensor.shape))}]"


def _parity(packaged: Packaged) -> Iterator[dict[str, Any]]:
    for evidence in packaged.parity:
        if evidence.format != packaged.manifest.format:
            continue
        for output in evidence.outputs:
            for kind, multiple in (("maximum", output.max_multiple), ("relative L2", output.l2_multiple)):
                yield {
                    "type": f"{kind} error against {evidence.reference}, in multiples of eager's own",
                    "value": f"{multiple:.6g}",
                    "slice": f"output {output.output}, {evidence.rows} rows",
                }


def _latency(evidence: LatencyEvidence, contender: str) -> Iterator[dict[str, Any]]:
    """The medians with their intervals, each where it was measured."""
    for cell in evidence.cells:
        if cell.contender == contender and cell.p50 is not None:
            yield {
                "type": "latency p50 in ms",
                "value": f"{cell.p50.value:.6g}",
                "slice": f"batch {cell.batch}, {evidence.threads} threads, {evidence.device}, n = {cell.n}",
                "confidenceInterval": {"lowerBound": f"{cell.p50.low:.6g}", "upperBound": f"{cell.p50.high:.6g}"},
            }


def _limitations(manifest: Manifest) -> Iterator[str]:
    yield "the data it was trained on is not known to deployctl"
    yield f"{manifest.verdicts.architecture.verdict}: {manifest.verdicts.architecture.reason}"
    for name in manifest.unsafe_accepted:
        yield f"its {name} check failed and was accepted as unsafe"


def _properties(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "format", manifest.format
    yield "target", manifest.target.name
    yield "parameters", str(manifest.checkpoint.parameters)
    yield "parity", f"{manifest.verdicts.parity.verdict}: {manifest.verdicts.parity.reason}"
    for name, value in manifest.preprocessing.model_dump(exclude_defaults=True).items():
        yield f"preprocessing:{name}", str(value)
