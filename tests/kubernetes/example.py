"""The versions that k8s/ is rendered from: the demo's contract on CPU and on a GPU, the same bytes everywhere.

Owns the fixtures below tests/kubernetes/repositories, which were made once (`make_fixture`) and are read since. Run as
a script it renders k8s/ again: `python -m tests.kubernetes.example`.
"""

from pathlib import Path

from deploy.kubernetes.render import Rendered, render
from deploy.kubernetes.request import KubernetesRequest, Source
from deploy.kubernetes.write import write
from deploy.monitoring.objective import Objective
from deploy.repository.find import find_version
from tests.markdown import ROOT

NAME = "digits_resnet18"
REPOSITORIES = Path(__file__).parent / "repositories"
OUTPUT = ROOT / "k8s"
EXAMPLES = ("cpu", "gpu")
_OBJECTIVES = (
    Objective(model=NAME, bound_ms=15.0, quantile=0.99),
    Objective(model=NAME, bound_ms=None, quantile=0.999),
)
_SOURCES = ("s3://models/production", "pvc://models/production", "image://registry.example.com/digits-models:1")
_TOOLS = "registry.example.com/deployctl-packager:26.08"


def example(name: str) -> Rendered:
    """One folder of k8s/ as it should be: on CPU with each way of delivery, on a GPU with the version in the image."""
    version = find_version(REPOSITORIES / name, NAME)
    if name == "cpu":
        request = KubernetesRequest(
            version=version,
            sources=tuple(Source.parse(source) for source in _SOURCES),
            tool_image=_TOOLS,
            namespace="digits",
            objectives=_OBJECTIVES,
            rate=50.0,
        )
    else:
        image = f"registry.example.com/digits-resnet18-server@sha256:{'7' * 64}"
        request = KubernetesRequest(version=version, image=image, objectives=_OBJECTIVES)
    return render(request)


if __name__ == "__main__":
    for one in EXAMPLES:
        for path in write(example(one), OUTPUT / one):
            print(path)
