"""Whether the server behind a load run answers as the version whose record the result is kept beside.

Owns a few questions before any load. A name and a number say nothing of the bytes: a server that reads another
repository, or had its model reloaded by hand, would earn a verdict for a version that it never ran. Called by run and
rates, through `check_same`.
"""

from deploy.errors import UnfinishedError
from deploy.repository.find import read_manifest
from deploy.serve.asking import Asking
from deploy.serve.client import Client, RequestFailed
from deploy.slo.question import find_subject
from deploy.slo.request import SloRequest
from deploy.validate.store import RECORD

# Enough to tell one set of weights from another, few enough for a model that takes seconds.
_QUESTIONS = 3
# What answers to no rows of tensors, or was published although its answers are not the reference's.
_UNASKED = ("python", "vllm", "ensemble")


def check_same(request: SloRequest) -> None:
    """Raises UnfinishedError if the server answers the version's own rows otherwise than when it was proven.

    A server that gives no answer is the load run's to judge, and so is what keeps no rows or was never held to them.
    """
    subject = find_subject(request.reference, request.repository)
    if subject.version is None or request.stream is not None or not (subject.version.evidence / RECORD).is_file():
        return
    manifest = read_manifest(subject.version)
    if manifest.format in _UNASKED or manifest.unsafe_accepted:
        return
    with Client(request.protocol, request.url, seconds=request.patience) as client:
        try:
            found = Asking.published(subject.version, manifest, client).few(_QUESTIONS).judgement
        except RequestFailed:
            return
    if not found.passed:
        raise UnfinishedError(
            f"the server at {request.url} does not answer as {subject} did when it was proven: {found.reason}",
            expected="the version of --repository behind --url, which the result is kept beside",
            fix="correct --url or --repository, or ask with --samples alone for a verdict on whatever is served there",
        )
