"""Chosen versions of a repository, served by an engine for as long as a block lasts.

Owns which versions a command means, and the private view between them and the server. Called by parity, and by
the commands `serve` and `docker`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploy.errors import UsageError
from deploy.repository.find import find_version, list_models, read_manifest
from deploy.repository.integrity import require_intact, step_versions
from deploy.repository.layout import Version
from deploy.scratch import scratch_folder
from deploy.serve.engines import Engine
from deploy.serve.local import served_view
from deploy.serve.server import ServerOptions, TritonServer


def chosen_versions(repository: Path, references: Sequence[str]) -> tuple[Version, ...]:
    """The versions that `NAME[:N] ...` mean; without any, the promoted version of each model.

    Raises UsageError if one does not exist, or nothing is promoted.
    """
    if references:
        return with_steps(tuple(find_version(repository, reference) for reference in references))
    models = list_models(repository)
    promoted = tuple(model.version(model.promoted) for model in models if model.promoted is not None)
    if not promoted:
        names = ", ".join(model.name for model in models)
        raise UsageError(
            f"no model in {repository} has a promoted version",
            expected=f"a promoted version of {names}" if names else "a repository that holds models",
            fix="name a version (NAME:N), promote one, or publish one with `deployctl package`",
        )
    return with_steps(promoted)


def with_steps(versions: Sequence[Version]) -> tuple[Version, ...]:
    """The versions, and those that ensembles among them run as steps: of one model there may be several then.

    Raises UsageError if two versions of one model were named.
    """
    if len({version.name for version in versions}) < len(versions):
        names = ", ".join(version.name for version in versions)
        raise UsageError(
            f"two versions of one model were named: {names}",
            expected="one of each",
            fix="start a second server for the other one",
        )
    steps = [
        step
        for version in versions
        if version.manifest.is_file()
        for step in step_versions(version, read_manifest(version))
    ]
    return tuple(dict.fromkeys((*versions, *steps)))


@contextmanager
def serving(
    versions: Sequence[Version], *, engine: Engine, options: ServerOptions | None = None, staged: bool = False
) -> Iterator[TritonServer]:
    """A server that is ready with exactly these versions, promoted or not.

    Published ones are compared with their digests before anything of them is loaded, and once more when the server is
    ready, since it reads them in between; `staged` ones have no digests yet. Raises UsageError if one has changed,
    ServerFailed if the server does not start.
    """
    published = () if staged else tuple(versions)
    for version in published:
        require_intact(version)
    expected = tuple((version.name, version.number) for version in versions)
    with scratch_folder("server") as folder:
        view = served_view(folder / "models", versions, engine)
        chosen = replace(options or ServerOptions(), expect=expected, scratch=folder)
        with TritonServer(view, engine=engine, options=chosen) as server:
            for version in published:
                require_intact(version)
            yield server
