"""`deployctl k8s REPOSITORY NAME[:N]`: manifests for Kubernetes, rendered from a version and what is known of it.

Owns the options and the words on the terminal. The work is deploy.kubernetes'.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.options import config_option
from deploy.cli.types import MILLISECONDS, POSITIVE

if TYPE_CHECKING:
    from deploy.kubernetes.request import KubernetesRequest


@click.command("k8s")
@click.argument("repository", type=click.Path(path_type=Path))
@click.argument("reference", metavar="NAME[:N]")
@click.option("--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the files go.")
@click.option("--image", metavar="REF", help="The server's image.  [default: the target's own, with --models]")
@click.option(
    "--models",
    multiple=True,
    metavar="URL",
    help="Where pods get the version, if not in the image: image://REF, pvc://CLAIM[/PATH], or a store's URL.",
)
@click.option("--tool-image", metavar="REF", help="An image with deployctl, which pulls and checks the SLO.")
@click.option("--target", metavar="NAME", help="The release to serve with.  [default: the one packaged for]")
@click.option("--namespace", metavar="NAME", help="Where the objects go.  [default: kubectl's]")
@click.option("--name", metavar="NAME", help="What the objects are called.  [default: the model's name]")
@click.option("--replicas", type=click.IntRange(1, 10_000), default=2, show_default=True, help="The fewest servers.")
@click.option("--prometheus", metavar="URL", help="Where the cluster's Prometheus answers.  [default: the operator's]")
@click.option("--p99-ms", type=MILLISECONDS, help="Watch that 99 % are within this bound.")
@click.option("--slo", type=click.Path(path_type=Path), metavar="FILE", help="Watch the bounds of its table [slo].")
@click.option("--rate", type=POSITIVE, help="Queries per second of the SLO check.")
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def command(*, output: Path, as_json: bool, **given: Any) -> None:
    """Render what runs a version on Kubernetes: a base for kustomize, and overlays to apply.

    Probes, memory and scaling come from what was measured of the version, alerts from its objectives: without a bound,
    those that it was last shown to keep by `deployctl slo`. Nothing is applied, and no cluster is asked.
    """
    from deploy.kubernetes.render import render
    from deploy.kubernetes.write import write

    rendered = render(_request(**given))
    paths = write(rendered, output)
    for note in rendered.notes:
        click.echo(f"note: {note}", err=True)
    if as_json:
        plan = rendered.plan
        facts = {"version": str(plan.version), "digest": plan.model.digest, "target": plan.target.name}
        files = [str(path) for path in paths]
        click.echo(json.dumps({**facts, "image": plan.image, "files": files, "notes": rendered.notes}, indent=2))
        return
    for path in paths:
        click.echo(path)
    click.echo(f"\nkubectl apply -k {output / rendered.overlay}")


def _request(*, repository: Path, reference: str, **given: Any) -> "KubernetesRequest":
    from deploy.kubernetes.request import PROMETHEUS, KubernetesRequest, Source
    from deploy.monitoring.objective import objectives_for
    from deploy.repository.find import find_version
    from deploy.slo.settings import read_settings

    version = find_version(repository, reference)
    slo = given.pop("slo")
    objectives = objectives_for(version, p99_ms=given.pop("p99_ms"), slo=slo)
    rate = given.pop("rate") or (read_settings(slo).rate if slo else None)
    sources = tuple(Source.parse(url) for url in given.pop("models"))
    prometheus = given.pop("prometheus") or PROMETHEUS
    return KubernetesRequest(
        version=version, sources=sources, objectives=objectives, rate=rate, prometheus=prometheus, **given
    )
