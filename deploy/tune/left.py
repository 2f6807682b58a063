"""What a new version does not have of what an earlier one was tuned to.

Owns one sentence. A package begins with the packager's own config, and what `tune` found for the fine-tune of before is
no proof for this one; whoever releases it must know. Called by what `package` prints.
"""

from deploy.errors import DeployError
from deploy.repository.layout import Version, version_numbers
from deploy.repository.protobuf import parse_config
from deploy.slo.tune_records import TuneEvidence
from deploy.tune.knobs import own_setting
from deploy.tune.publish import TUNING_FILE


def left_of_tuning(version: Version) -> str:
    """That the last tuned version before this one has another setting, and how to find this one's; else empty.

    So it is too where that version has changed since: it is no part of what was asked, and others find that.
    """
    numbers = (number for number in reversed(version_numbers(version.model_folder)) if number < version.number)
    earlier = (Version(repository=version.repository, name=version.name, number=number) for number in numbers)
    tuned = next((one for one in earlier if (one.evidence / TUNING_FILE).is_file()), None)
    if tuned is None:
        return ""
    try:
        bound = TuneEvidence.read(tuned.evidence / TUNING_FILE).bound
        old, new = (own_setting(parse_config(one.config.read_text())) for one in (tuned, version))
    except (DeployError, OSError, ValueError):
        return ""
    if old == new:
        return ""
    return (
        f"{tuned} was tuned for {bound.wanted} to {old}; {version} has {new}: "
        f"`deployctl tune {version.repository} {version} --p99-ms {bound.limit:g}` finds what suits it"
    )
