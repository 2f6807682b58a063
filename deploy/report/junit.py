"""A load run as JUnit XML, the form in which every CI system shows what failed.

Owns the mapping of verdicts to test cases. Called by the command `slo`.
"""

from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deploy.errors import DeployError, ExitCode
from deploy.evidence import Judgement
from deploy.report import words
from deploy.slo.records import RateEvidence, SloEvidence


def junit_xml(evidence: SloEvidence | RateEvidence) -> str:
    """One suite: a test case for the run itself, and one per promise; of a search for a rate a single case.

    A fail is a failure, undecided is a failure of the type `undecided`, and a run that proves nothing is an error in
    every case: none of its promises was seen to be kept.
    """
    return _document(_search(evidence) if isinstance(evidence, RateEvidence) else _run(evidence))


def unfinished_xml(reference: str, error: DeployError) -> str:
    """The suite of a run that came to no record: one case, which is an error."""
    suite = Element("testsuite", name=f"slo {words.printable(reference)}")
    _outcome(_named(suite, "the run", reference.partition(":")[0]), "error", error.exit_code.name.lower(), str(error))
    return _document(suite)


def _document(suite: Element) -> str:
    for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        suite.set(attribute, str(sum(1 for _ in suite.iter(tag))))
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{tostring(root, encoding="unicode")}\n'


def _run(evidence: SloEvidence) -> Element:
    name = f"slo {words.subject(evidence.model, evidence.version)}"
    suite = Element("testsuite", name=name, timestamp=words.printable(evidence.started))
    _case(suite, "the run", _run_judgement(evidence), evidence).set("time", f"{evidence.seconds_taken:.3f}")
    for result in evidence.bounds:
        _case(suite, result.bound.wanted, result.judgement, evidence)
    suite.set("time", f"{evidence.seconds_taken:.3f}")
    lines = [words.run_line(evidence), *words.client_lines(evidence), *words.server_lines(evidence.server)]
    SubElement(suite, "system-out").text = "\n".join([*lines, *map(words.printable, evidence.remarks)])
    return suite


def _search(evidence: RateEvidence) -> Element:
    suite = Element("testsuite", name=f"slo {words.subject(evidence.model, evidence.version)}")
    case = _named(suite, "the highest rate", evidence.model)
    if evidence.exit_code is ExitCode.UNFINISHED:
        _outcome(case, "error", "invalid", evidence.judgement.reason)
    elif not evidence.judgement.passed:
        _outcome(case, "failure", evidence.judgement.verdict.value, evidence.judgement.reason)
    lines = [words.rate_line(evidence), *(" ".join(row) for row in words.rate_rows(evidence))]
    SubElement(suite, "system-out").text = "\n".join(lines)
    return suite


def _run_judgement(evidence: SloEvidence) -> Judgement:
    """The run's own verdict: the whole one, unless a promise that did not pass says it already."""
    if all(result.judgement.passed for result in evidence.bounds):
        return evidence.judgement
    return Judgement.yes("the run is valid")


def _case(suite: Element, name: str, judgement: Judgement, evidence: SloEvidence) -> Element:
    case = _named(suite, name, evidence.model)
    if evidence.invalid is not None:
        _outcome(case, "error", "invalid", evidence.invalid)
    elif not judgement.passed:
        _outcome(case, "failure", judgement.verdict.value, judgement.reason)
    return case


def _named(suite: Element, name: str, model: str) -> Element:
    return SubElement(suite, "testcase", name=name, classname=f"slo.{words.printable(model)}")


def _outcome(case: Element, tag: str, kind: str, reason: str) -> None:
    # `printable` also keeps out the control characters that no XML may hold.
    SubElement(case, tag, type=kind, message=words.printable(reason)).text = words.printable(reason)
