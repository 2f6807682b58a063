"""The command line: finds a command, runs it, and turns whatever it raised into one message and one exit code.

Owns exit codes and `--debug`; each command's own file parses, makes one library call and prints. The console
script `deployctl` calls `main`.
"""

import importlib
import io
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import click

from deploy import __version__
from deploy.cli.examples import as_epilog
from deploy.errors import DeployError, ExitCode, UnfinishedError
from deploy.files import disk_error, place_error

COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("deploy.cli.inspect", "Say what a checkpoint holds and which architecture it fits."),
    "package": ("deploy.cli.package", "Turn a checkpoint into a proven, servable Triton model version."),
    "verify": ("deploy.cli.verify", "Prove published versions again: digests, config, target, served answers."),
    "promote": ("deploy.cli.promote", "Make a version the one that Triton serves."),
    "rollback": ("deploy.cli.rollback", "Go back to the version that was promoted before."),
    "diff": ("deploy.cli.diff", "Say what would change if one version took another's traffic."),
    "sign": ("deploy.cli.sign", "Sign a version, with its provenance and bill of materials."),
    "publish": ("deploy.cli.publish", "Send a version to another repository: a folder, object store or registry."),
    "pull": ("deploy.cli.pull", "Bring a version of another repository here."),
    "report": ("deploy.cli.report", "Write a version's evidence and attestations to one HTML file."),
    "engine": ("deploy.cli.engine", "Install or list the tritonservers that this machine can run."),
    "serve": ("deploy.cli.serve", "Run a real tritonserver on a repository until ctrl-C."),
    "bench": ("deploy.cli.bench", "Measure a version's latency, against eager or another version."),
    "slo": ("deploy.cli.slo", "Say whether a running server keeps its latency objectives."),
    "tune": ("deploy.cli.tune", "Find the configuration that sustains the highest rate within a bound."),
    "targets": ("deploy.cli.targets", "List where versions can run, or explain one target."),
    "doctor": ("deploy.cli.doctor", "Say what this machine can build, serve and measure."),
    "cache": ("deploy.cli.cache", "List or remove compiled code that is kept for the next fine-tune."),
    "docker": ("deploy.cli.docker", "Render images and a compose file that serve versions, with monitoring."),
    "k8s": ("deploy.cli.k8s", "Render what runs a version on Kubernetes."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, so that `--help` costs milliseconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the table, which is the order people need them in."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called `cmd_name`, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        command.epilog = as_epilog(cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deployctl")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure; accepted in any place.")
def cli(*, debug: bool) -> None:
    """From a fine-tuned PyTorch checkpoint to a proven, servable Triton model version."""


def main() -> NoReturn:
    """Run `deployctl` and exit: 0 passed, 1 no or undecided, 2 wrong use, 3 missing, 4 unfinished, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A label that the terminal's encoding lacks is shown escaped: it is no reason to lose a result.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Whoever is started under `nohup` is to outlive its terminal.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = cli.main(arguments, prog_name="deployctl", standalone_mode=False)
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
            _tell_machines(DeployError(error.format_message()), ExitCode.USAGE)
        sys.exit(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort) as interrupt:
        with suppress(OSError):
            # Click makes an Abort of it, which says nothing.
            said = str(interrupt.__cause__ or "") or str(interrupt)
            words = f"interrupted: {said}" if said else "interrupted"
            click.echo(words, err=True)
            _tell_machines(DeployError(words), ExitCode.INTERRUPTED)
        sys.exit(ExitCode.INTERRUPTED)
    except DeployError as error:
        _end(error, error)
    except SystemExit:
        # Click's own end, with 1, where the reader of stdout went away (`| head`): nobody is left to tell.
        sys.exit(ExitCode.UNFINISHED)
    except RuntimeError as error:
        _end(error, place_error(error))
    except OSError as error:
        _end(error, disk_error(error, "running the command") or place_error(error))
    except Exception as error:  # noqa: BLE001 - the last edge: a bug of ours must not end as a verdict
        _end(error)
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _end(error: Exception, said: DeployError | None = None) -> NoReturn:
    """Say what went wrong, and exit as it says; what nobody explained is a bug of ours."""
    if said is None:
        found = f"a bug in deployctl: {type(error).__name__}: {error}"
        said = UnfinishedError(found, fix="run it again with --debug and report the traceback")
    with suppress(OSError):  # where nothing can be written the exit code has to do
        _report(error, said)
    sys.exit(said.exit_code)


def _report(error: Exception, said: DeployError) -> None:
    """Say what went wrong on stderr, and as JSON on stdout where `--json` was asked for."""
    if "--debug" in sys.argv[1:]:
        import traceback

        traceback.print_exception(error)
    click.echo(f"error: {said}", err=True)
    _tell_machines(said, said.exit_code)


def _tell_machines(said: DeployError, code: ExitCode) -> None:
    if "--json" in sys.argv[1:]:
        import json

        click.echo(json.dumps({"error": said.plain(), "exit_code": int(code)}))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
