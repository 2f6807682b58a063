"""`deployctl package CKPT`: the main job from the command line.

Owns the options and the printed result. The work is `deploy.package`'s.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from deploy.checkpoint.model import CheckpointRequest
from deploy.cli.llm import llm_options
from deploy.cli.options import checkpoint_options, config_option
from deploy.cli.types import MILLISECONDS, POSITIVE, SECONDS, Written
from deploy.convert.model import FORMATS, Format
from deploy.convert.tactics import EFFORTS
from deploy.errors import UsageError
from deploy.targets import LOCAL_CPU, LOCAL_CUDA, find_target

if TYPE_CHECKING:
    from deploy.request import PackageRequest

_GB = 1_000_000_000


class _Formats(Written):
    """Formats by name: aoti,onnx or ["aoti", "onnx"]."""

    name = "formats"
    annotation = tuple[Literal["aoti", "onnx"], ...]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Format, ...]:
        """The formats in their usual order. Raises UsageError if one does not exist or stands there twice."""
        names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
        unknown = [name for name in names if name not in FORMATS]
        if unknown or not names or len(set(names)) != len(names):
            what = repr(unknown[0]) if unknown else "a format twice" if names else "none"
            raise UsageError(
                f"--formats {','.join(names)!r} names {what}",
                expected=f"one or more of {', '.join(FORMATS)}, separated by commas",
            )
        return tuple(name for name in FORMATS if name in names)


@click.command("package")
@checkpoint_options
@click.option("--name", help="The model's name; default: the file's name, cleaned.")
@click.option(
    "--repository",
    type=click.Path(path_type=Path),
    default=Path("model_repository"),
    show_default=True,
    help="The Triton model repository to publish into.",
)
@click.option(
    "--samples", type=click.Path(path_type=Path), metavar="FILE.npz", help="Real inputs, and what training computed."
)
@click.option("--labels", type=click.Path(path_type=Path), metavar="FILE", help="Class names, one per line.")
@click.option(
    "--formats", type=_Formats(), metavar="aoti,onnx", help="The formats, each of which must then be built and pass."
)
@click.option("--all-formats/--no-all-formats", help="Publish each format as a model of its own: NAME_aoti, NAME_onnx.")
@click.option(
    "--max-batch", type=click.IntRange(min=1), default=8, show_default=True, help="The largest batch; 1: static."
)
@click.option(
    "--as-is", is_flag=True, help="Serve a TorchScript archive unconverted; proven by the samples' expected/ alone."
)
@click.option(
    "--ensemble",
    type=click.Choice(["image", "text"]),
    help="Publish an ensemble too: NAME_image takes JPEG or PNG bytes, NAME_text texts; labels and scores come out.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Real JPEG and PNG files to prove the ensemble with.",
)
@click.option(
    "--texts",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --ensemble text: real texts to prove it with, one per line.",
)
@click.option(
    "--exif-orientation/--no-exif-orientation",
    help="With --ensemble image: training turned photographs as their EXIF says; torchvision's loaders do not.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where it is exported, compiled, proven and measured; cuda: this machine's GPU.",
)
@click.option(
    "--target", help=f"Where it will run: a Triton release and device.  [default: {LOCAL_CPU}; on cuda {LOCAL_CUDA}]"
)
@click.option(
    "--cpu-isa", type=click.Choice(["avx2", "native"]), default="avx2", show_default=True, help="What AOTI may use."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16", "int8", "auto"]),
    default="fp32",
    show_default=True,
    help="What the artifacts compute in; auto: the fastest that passes. Requests keep their dtypes.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Rows that int8 takes static scales from; default: half of --samples, at most 128, kept out of its judgement.",
)
@click.option(
    "--metric", type=click.Choice(["accuracy"]), help="What decides on int8 where --samples hold labels: accuracy."
)
@click.option(
    "--max-drop",
    type=POSITIVE,
    metavar="POINTS",
    help="Percentage points of accuracy that int8 may lose to fp32.  [default: 0.5]",
)
@click.option("--slo-p99-ms", type=MILLISECONDS, help="Publish only if p99 at batch 1 meets this.")
@click.option(
    "--seconds-per-cell",
    type=SECONDS,
    default=2.5,
    show_default=True,
    help="Time for each format at each batch size.",
)
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default="low",
    show_default=True,
    help="How hard to look for a faster artifact: normal tries cheap tactics, max frozen and tuned code too.",
)
@click.option("--thorough/--no-thorough", help="Measure latency at every power of two up to --max-batch.")
@click.option(
    "--jobs", type=click.IntRange(min=1), help="Conversions side by side; default: what cores and memory allow."
)
@click.option("--timeout", type=SECONDS, metavar="S", help="Seconds for each child's step.")
@click.option("--memory-limit", type=POSITIVE, metavar="GB", help="GB for each child.")
@click.option(
    "--cache/--no-cache", default=True, show_default=True, help="Take and keep compiled code of the same graph."
)
@click.option(
    "--measure-again/--no-measure-again",
    help="Measure latency even where the same compiled code was measured here before.",
)
@click.option("--promote", is_flag=True, help="Serve the new version at once; a model's first version always is.")
@click.option("--new-contract", is_flag=True, help="Let the name change its format, tensors or labels.")
@click.option(
    "--serve-check/--no-serve-check",
    default=True,
    show_default=True,
    help="Judge a real Triton's answers; the manifest records if not.",
)
@click.option("--allow-constant-output", is_flag=True, help="Accept outputs that hardly vary, which prove nothing.")
@click.option(
    "--unsafe-accept-parity-failure", is_flag=True, help="Publish wrong numbers; marks the manifest for ever."
)
@click.option(
    "--keep-failed", type=click.Path(path_type=Path), metavar="DIR", help="Where to keep a stage that failed."
)
@config_option
@click.option("--dry-run", is_flag=True, help="Read and check everything, print the plan, write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
@llm_options
def command(ctx: click.Context, /, *, request: CheckpointRequest, as_json: bool, dry_run: bool, **given: Any) -> None:
    """Turn CKPT into a proven, servable Triton model version.

    It is exported once, compiled to AOTInductor and ONNX, proven against float64, measured, served by a real
    tritonserver, and only then published.
    """
    from deploy.processes import prepare

    # What children need is imported by the server they are forked from, while this process imports its own part.
    prepare("deploy.package", "deploy.convert.preload", "deploy.cli.main")
    from deploy.cli.packaged import show_plan, show_result
    from deploy.package import package, plan_package
    from deploy.report.stages import Stages

    as_is = given.pop("as_is")
    asked = _request(ctx, request, given)
    if as_is:
        from deploy.cli.as_is import package_script

        package_script(ctx, asked, as_json=as_json, dry_run=dry_run)
        return
    with Stages(quiet=as_json) as stages:
        if dry_run:
            plan = plan_package(asked, progress=stages)
        else:
            result = package(asked, progress=stages)
    if dry_run:
        show_plan(plan, asked, as_json=as_json)
        return
    show_result(result, as_json=as_json)
    ctx.exit(result.exit_code)


def _request(ctx: click.Context, checkpoint: CheckpointRequest, given: dict[str, Any]) -> "PackageRequest":
    """The options as the library takes them. Raises UsageError if the target does not exist."""
    from deploy.cli.config import own_command
    from deploy.request import PackageRequest, Resources

    formats, isa, memory = given.pop("formats"), given.pop("cpu_isa"), given.pop("memory_limit")
    target = given.pop("target") or (LOCAL_CUDA if given["device"] == "cuda" else LOCAL_CPU)
    return PackageRequest(
        checkpoint=checkpoint,
        target=find_target(target).with_isa(isa),
        formats=formats or FORMATS,
        by_name=formats is not None,
        accept_parity_failure=given.pop("unsafe_accept_parity_failure"),
        resources=Resources(
            jobs=given.pop("jobs"),
            seconds=given.pop("timeout"),
            memory=int(memory * _GB) if memory else None,
            seconds_per_cell=given.pop("seconds_per_cell"),
            cache=given.pop("cache"),
            measure_again=given.pop("measure_again"),
        ),
        command=own_command(ctx, sys.argv[1:]),
        **given,
    )
