"""An ensemble packaged once for the tests of a module, from the request that the module's own `asked` is."""

from pathlib import Path

import pytest

from deploy.errors import ExitCode
from deploy.package import package
from deploy.request import PackageRequest, PackageResult
from deploy.serve.engines import Engine
from deploy.serve.python_environment import install_python_environment


@pytest.fixture(scope="module")
def packaged(asked: PackageRequest, engine: Engine) -> PackageResult:
    install_python_environment()
    return package(asked)


@pytest.fixture(scope="module")
def repository(packaged: PackageResult, asked: PackageRequest) -> Path:
    assert packaged.exit_code is ExitCode.OK, packaged.outcome.judgement.reason
    return asked.repository
