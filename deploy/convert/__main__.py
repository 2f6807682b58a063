"""`python -m deploy.convert JOB.json`: one recorded conversion again, alone and in this process.

Owns the command that a failed conversion names. Called by people.
"""

import sys
from pathlib import Path

from deploy.convert.export import export_program
from deploy.convert.job import CONVERTERS, ConversionJob
from deploy.errors import DeployError, ExitCode


def main(arguments: list[str]) -> int:
    """Convert and print the artifact's files. Gives the exit code; what is no DeployError keeps its traceback."""
    if len(arguments) != 1:
        print("usage: python -m deploy.convert JOB.json", file=sys.stderr)
        return ExitCode.USAGE
    try:
        job = ConversionJob.read(Path(arguments[0]))
        job.artifact_folder.mkdir(parents=True, exist_ok=True)
        program = export_program(job.checkpoint, max_batch=job.max_batch, folder=job.folder, device=job.device)
        artifact = CONVERTERS[job.format](program, target=job.target, folder=job.artifact_folder)
    except DeployError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(*(artifact.folder / name for name in artifact.files), sep="\n")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
