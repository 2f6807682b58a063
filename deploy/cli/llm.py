"""`deployctl package FOLDER --backend vllm`: the options for a language model, and what is printed of it.

Owns parsing and words only. The work is `deploy.llm`'s. Called by the command `package`.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from deploy.cli.published import published_facts, published_line
from deploy.cli.types import Amount
from deploy.errors import UsageError
from deploy.targets import LOCAL_CPU, find_target

if TYPE_CHECKING:
    from deploy.llm.model import LlmPlan, LlmRequest, LlmResult

_SHARE = Amount(min=0, max=1, min_open=True)
_COUNT = click.IntRange(min=1)
_PATH = click.Path(path_type=Path)
_OPTIONS = (
    click.option(
        "--backend", type=click.Choice(["vllm"]), help="Serve CKPT, a causal language model's folder, with vLLM."
    ),
    click.option("--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="vllm: a LoRA adapter; repeatable."),
    click.option("--gpu", metavar="PART", help="vllm: such as H100-80GB; default: the target's smallest."),
    click.option("--gpus", type=_COUNT, default=8, show_default=True, help="vllm: the most GPUs one server has."),
    click.option(
        "--memory-share", type=_SHARE, default=0.9, show_default=True, help="vllm: of each GPU's memory it may take."
    ),
    click.option("--context", type=_COUNT, help="vllm: tokens of prompt and answer; default: all the model has."),
    click.option(
        "--sequences",
        type=_COUNT,
        default=8,
        show_default=True,
        help="vllm: how many of full context must fit at once.",
    ),
    click.option(
        "--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), help="vllm: default: as the weights are."
    ),
    click.option(
        "--mounted-at", default="/models", show_default=True, help="vllm: where the container sees the repository."
    ),
    click.option("--prompts", type=_PATH, metavar="FILE", help="vllm: one prompt a line, whose tokens are compared."),
)
_OURS = ("adapters", "gpu", "gpus", "memory_share", "context", "sequences", "dtype", "mounted_at", "prompts")
_SHARED = ("name", "repository", "target", "promote", "new_contract", "serve_check", "keep_failed")


def llm_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--backend` and what goes with it. With a backend the language model is packaged, else `function` is called.

    Raises UsageError for an option that does not go with the way that was chosen.
    """

    @wraps(function)
    def choose(ctx: click.Context, /, **given: Any) -> Any:
        backend, ours = given.pop("backend"), {name: given.pop(name) for name in _OURS}
        if backend is None:
            refuse_options(ctx, _OURS, "--backend vllm beside it")
            return function(ctx, **given)
        known = (*_OURS, *_SHARED, "backend", "ckpt", "config", "as_json", "dry_run")
        others = [str(option.name) for option in ctx.command.params if option.name not in known]
        refuse_options(ctx, others, "what --backend vllm knows: see `deployctl package --help`")
        return _package(ctx, given, ours)

    decorated: Callable[..., Any] = choose
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def refuse_options(ctx: click.Context, names: Any, expected: str) -> None:
    """Raises UsageError if one of the options `names` was given. `expected` says what goes with the chosen way."""
    options = {option.name: option for option in ctx.command.params}
    for name in names:
        if ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None):
            said = max(options[name].opts, key=len)
            raise UsageError(f"{said} does not go with the rest", expected=expected, fix=f"leave {said} out")


def _package(ctx: click.Context, given: dict[str, Any], ours: dict[str, Any]) -> None:
    from deploy.llm.package import package_llm, plan_llm
    from deploy.report.stages import Stages

    as_json, dry_run = given["as_json"], given["dry_run"]
    request = _request(ctx, given, ours)
    with Stages(quiet=as_json) as stages:
        if dry_run:
            plan = plan_llm(request, progress=stages)
        else:
            result = package_llm(request, progress=stages)
    if dry_run:
        lines = (*_plan_lines(plan), "nothing was written: this was a dry run")
        click.echo(json.dumps(_plan_as_dict(plan), indent=2) if as_json else "\n".join(lines))
        return
    if as_json:
        click.echo(json.dumps(_result_as_dict(result), indent=2))
    else:
        _show_result(result)
    ctx.exit(result.exit_code)


def _request(ctx: click.Context, given: dict[str, Any], ours: dict[str, Any]) -> "LlmRequest":
    from deploy.cli.config import own_command
    from deploy.llm.model import LlmRequest, Wishes

    adapters = tuple(map(_adapter, ours.pop("adapters")))
    beside = {name: ours.pop(name) for name in ("mounted_at", "prompts")}
    shared = {name: given[name] for name in _SHARED}
    return LlmRequest(
        path=given["request"].path,
        adapters=adapters,
        wishes=Wishes(**ours),
        command=own_command(ctx, sys.argv[1:]),
        **beside,
        **shared | {"target": find_target(shared["target"] or LOCAL_CPU)},
    )


def _adapter(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UsageError(
            f"--adapter {text!r} names no adapter", expected="NAME=DIR, such as support=./adapters/support"
        )
    return name, Path(folder)


def _plan_lines(plan: "LlmPlan") -> list[str]:
    model = plan.checkpoint
    found = [
        f"model: {model.architecture}, {model.parameters:,} parameters, {model.dtype}, for vLLM {plan.vllm}",
        f"chat template: {'yes' if model.chat_template else 'none'}",
        f"adapters: {', '.join(f'{one.name} (rank {one.rank})' for one in model.adapters) or 'none'}",
        *plan.sizing.lines(),
        f"engine arguments: {json.dumps(plan.arguments)}",
        f"version: {plan.name}:{plan.number}",
    ]
    return [*found, *(f"note: {note}" for note in model.notes)]


def _show_result(result: "LlmResult") -> None:
    from deploy.report.terminal import served_table, show, verdict_lines

    for line in _plan_lines(result.plan):
        click.echo(line)
    if result.served is not None:
        show(served_table([result.served]))
    show(verdict_lines(result.judgements))
    published = result.published
    if published is None:
        click.echo("published: nothing")
        return
    click.echo(published_line(published))


def _plan_as_dict(plan: "LlmPlan") -> dict[str, Any]:
    return {
        "checkpoint": plan.checkpoint.plain(),
        "vllm": plan.vllm,
        "sizing": plan.sizing.plain() | {"lines": plan.sizing.lines()},
        "engine_arguments": plan.arguments,
        "would_publish": f"{plan.name}:{plan.number}",
    }


def _result_as_dict(result: "LlmResult") -> dict[str, Any]:
    published = result.published
    facts = _plan_as_dict(result.plan)
    facts["published"] = None if published is None else published_facts(published)
    del facts["would_publish"]
    return facts | {
        "verdicts": {name: one.plain() for name, one in result.judgements.items()},
        "tokens": result.tokens.plain() if result.tokens else None,
        "served": result.served.plain() if result.served else None,
        "exit_code": int(result.exit_code),
    }
