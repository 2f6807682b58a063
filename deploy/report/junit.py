"""A load run as JUnit XML, the form in which every CI system shows what failed.

Owns the mapping of verdicts to test cases. Called by the command `slo`.
"""

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deploy.evidence import Judgement
from deploy.report import words
from deploy.slo.records import SloEvidence


def junit_xml(evidence: SloEvidence) -> str:
    """One suite: a test case for the run itself, and one per promise.

    A fail is a failure, undecided is a failure of the type `undecided`, and a run that proves nothing is an error in
    every case: none of its promises was seen to be kept.
    """
    name = f"slo {words.subject(evidence.model, evidence.version)}"
    suite = Element("testsuite", name=name, timestamp=words.printable(evidence.started))
    _case(suite, "the run", _run_judgement(evidence), evidence).set("time", f"{evidence.seconds_taken:.3f}")
    for result in evidence.bounds:
        _case(suite, result.bound.wanted, result.judgement, evidence)
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    suite.set("time", f"{evidence.seconds_taken:.3f}")
    lines = [words.run_line(evidence), *words.client_lines(evidence.client), *words.server_lines(evidence.server)]
    SubElement(suite, "system-out").text = "\n".join([*lines, *map(words.printable, evidence.remarks)])
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _run_judgement(evidence: SloEvidence) -> Judgement:
    """The run's own verdict: the whole one, unless a promise that did not pass says it already."""
    if all(result.judgement.passed for result in evidence.bounds):
        return evidence.judgement
    return Judgement.yes("the run is valid")


def _case(suite: Element, name: str, judgement: Judgement, evidence: SloEvidence) -> Element:
    case = SubElement(suite, "testcase", name=name, classname=f"slo.{words.printable(evidence.model)}")
    if evidence.invalid is not None:
        _outcome(case, "error", "invalid", evidence.invalid)
    elif not judgement.passed:
        _outcome(case, "failure", judgement.verdict.value, judgement.reason)
    return case


def _outcome(case: Element, tag: str, kind: str, reason: str) -> None:
    # `printable` also keeps out the control characters that no XML may hold.
    SubElement(case, tag, type=kind, message=words.printable(reason)).text = words.printable(reason)
