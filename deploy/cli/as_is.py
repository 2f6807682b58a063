"""`deployctl package ARCHIVE --as-is`: which options go with it, and what is printed of it.

Owns parsing and words only. The work is `deploy.as_is`'s. Called by the command `package`.
"""

import json
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.llm import refuse_options
from deploy.cli.published import published_facts, published_line

if TYPE_CHECKING:
    from deploy.as_is import AsIsPlan, AsIsResult
    from deploy.request import PackageRequest

_KNOWN = (
    "as_is", "ckpt", "inputs", "values", "name", "repository", "samples", "labels", "max_batch", "target", "promote",
    "new_contract", "serve_check", "unsafe_accept_parity_failure", "keep_failed", "timeout", "memory_limit", "config",
    "dry_run", "as_json",
)  # fmt: skip


def package_script(ctx: click.Context, request: "PackageRequest", *, as_json: bool, dry_run: bool) -> None:
    """Package an archive as it is, or say what would be. Raises UsageError for an option that has no use here."""
    from deploy.as_is import package_as_is, plan_as_is
    from deploy.report.stages import Stages

    others = [str(option.name) for option in ctx.command.params if option.name not in _KNOWN]
    refuse_options(ctx, others, "what --as-is knows: nothing is built, converted or measured")
    with Stages(quiet=as_json) as stages:
        if dry_run:
            plan = plan_as_is(request, progress=stages)
        else:
            result = package_as_is(request, progress=stages)
    if dry_run:
        facts = _plan_as_dict(plan)
        click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(f"{name}: {facts[name]}" for name in facts))
        return
    if as_json:
        click.echo(json.dumps(_result_as_dict(result), indent=2))
    else:
        _show(result)
    ctx.exit(result.exit_code)


def _plan_as_dict(plan: "AsIsPlan") -> dict[str, Any]:
    return {
        "checkpoint": str(plan.checkpoint.path),
        "architecture": plan.checkpoint.architecture,
        "inputs": {tensor.name: [tensor.dtype, *tensor.shape] for tensor in plan.checkpoint.inputs},
        "samples": str(plan.samples.path) if plan.samples else None,
        "would_publish": f"{plan.name}:{plan.number}",
    }


def _show(result: "AsIsResult") -> None:
    from deploy.report.terminal import served_table, show, verdict_lines

    if result.served is not None:
        show(served_table([result.served]))
    verdicts = {"parity": result.parity, "architecture": result.behaviour.judgement}
    if result.served is not None:
        verdicts["served"] = result.served.judgement
    show(verdict_lines(verdicts))
    published = result.published
    if published is None:
        why = result.lost or (
            "it is wrong"
            if result.behaviour.status == "refuted"
            else "it is unproven: give --samples with expected/ outputs, or accept that with "
            "--unsafe-accept-parity-failure, which marks the version for ever"
        )
        click.echo(f"published: nothing: {why}")
        return
    unproven = "" if result.parity.passed else ", UNPROVEN, and marked so for ever"
    click.echo(published_line(published, remark=unproven))


def _result_as_dict(result: "AsIsResult") -> dict[str, Any]:
    published = result.published
    return {
        "exit_code": int(result.exit_code),
        "checkpoint": result.plan.checkpoint.plain(),
        "verdicts": {
            "parity": result.parity.plain(),
            "architecture": result.behaviour.judgement.plain(),
        },
        "served": result.served.plain() if result.served else None,
        "lost": result.lost,
        "published": None if published is None else published_facts(published) | {"unproven": not result.parity.passed},
    }
