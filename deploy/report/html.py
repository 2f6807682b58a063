"""A version and what was learnt of it as one HTML file: no script, no network, for a phone, a screen and paper.

Owns the page as a whole; what is on it is in `sections` and `slo_sections`, how it is laid out in `templates/`. Called
by packaging, through a child that draws while other work goes on, and by the command `report`. Imports jinja2 on use.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.report.blocks import Section
from deploy.report.findings import Findings, read_packaged
from deploy.report.sections import draw_packaged, packaged_sections
from deploy.report.slo_sections import learnt_sections
from deploy.report.standing import checks, overall
from deploy.report.words import printable
from deploy.repository.manifest import Manifest

if TYPE_CHECKING:
    from jinja2 import Template

    from deploy.report.charts import Chart

REPORT_FILE = "report.html"


class VersionReport:
    """The report of one version in the making. Drawing is done at once; the page follows when the manifest is there.

    Lives in a child of its own, so that drawing costs the command neither an import nor its time.
    """

    def __init__(self, folder: Path, draft: Manifest) -> None:
        self._folder = folder
        self._charts = draw_packaged(read_packaged(folder, draft))

    def page(self, folder: Path, manifest: Manifest) -> bytes:
        """The page for the version as it now lies in `folder`, with everything that was learnt meanwhile."""
        return _render(Findings(packaged=read_packaged(folder, manifest)), self._charts)


def render_html(findings: Findings) -> bytes:
    """The page; equal findings give equal bytes."""
    return _render(findings, draw_packaged(findings.packaged))


def _render(findings: Findings, charts: "dict[str, tuple[Chart, ...]]") -> bytes:
    manifest = findings.packaged.manifest
    found = checks(findings)
    page = _template().render(
        name=printable(f"{manifest.name}:{manifest.version}"),
        manifest=manifest,
        digest=findings.digest,
        signature=findings.signature,
        overall=overall(found),
        checks=found,
        unsafe=tuple(printable(name) for name in manifest.unsafe_accepted),
        sections=_in_order(findings, charts),
        style=_data("style.css"),
    )
    return page.encode()


def _in_order(findings: Findings, charts: "dict[str, tuple[Chart, ...]]") -> tuple[Section, ...]:
    """How it behaves under load first, then how it was proven, then what it is, and the list of attestations last."""
    learnt = tuple(learnt_sections(findings))
    listed = tuple(section for section in learnt if section.anchor == "attestations")
    first = tuple(section for section in learnt if section.anchor != "attestations")
    return (*first, *packaged_sections(findings.packaged, charts), *listed)


@cache
def _template() -> "Template":
    from jinja2 import DictLoader, Environment, StrictUndefined

    # Everything is escaped but what the template marks as its own: the style and the plots.
    environment = Environment(
        loader=DictLoader({"report": _data("report.html.j2")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report")


def _data(name: str) -> str:
    return files("deploy.report").joinpath("templates", name).read_text(encoding="utf-8")
