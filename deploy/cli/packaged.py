"""What `deployctl package` prints: its result or its plan, for people or as JSON.

Owns words only. Called by the command `package`.
"""

import json
from typing import Any

import click

from deploy.cli.published import published_facts, published_line
from deploy.evidence import Judgement
from deploy.request import PackagePlan, PackageRequest, PackageResult
from deploy.tune.left import left_of_tuning


def show_result(result: PackageResult, *, as_json: bool) -> None:
    """Print what was proven, measured, served and published."""
    if as_json:
        click.echo(json.dumps(_result_as_dict(result), indent=2))
        return
    from deploy.report.precision_words import precision_table
    from deploy.report.terminal import latency_table, parity_table, served_table, show, verdict_lines

    outcome = result.outcome
    if result.precision is not None:
        show(precision_table(result.precision))
    show(parity_table(result.parity))
    if result.latency is not None:
        show(latency_table(result.latency))
    if outcome.served:
        show(served_table(outcome.served))
    show(verdict_lines(_judgements(result)))
    for name, reason in outcome.lost.items():
        click.echo(f"lost: {name}: {reason}")
    for published in outcome.published:
        click.echo(published_line(published))
        for change in published.contract_changes:
            click.echo(f"clients will notice: {change}")
        if left := left_of_tuning(published.version):
            click.echo(f"not tuned: {left}")
    if not outcome.published:
        click.echo("published: nothing")


def show_plan(plan: PackagePlan, request: PackageRequest, *, as_json: bool) -> None:
    """Print what `package` would do."""
    facts = _plan_as_dict(plan, request)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' ')}: {_plain(value)}")
    click.echo("nothing was written: this was a dry run")


def _judgements(result: PackageResult) -> dict[str, Judgement]:
    judgements = {f"parity of {evidence.format}": evidence.judgement for evidence in result.parity}
    judgements["architecture"] = result.behaviour.judgement
    if result.latency is not None:
        judgements["latency"] = result.latency.judgement
    for served in result.outcome.served:
        judgements[served.mode] = served.judgement
    return {**judgements, "package": result.outcome.judgement}


def _result_as_dict(result: PackageResult) -> dict[str, Any]:
    outcome, conversion = result.outcome, result.conversion
    return {
        "verdict": outcome.judgement.plain(),
        "exit_code": int(result.exit_code),
        "published": [
            published_facts(one)
            | {"contract_changes": list(one.contract_changes), "not_tuned": left_of_tuning(one.version)}
            for one in outcome.published
        ],
        "lost": outcome.lost,
        "checkpoint": result.checkpoint.plain(),
        "conversion": {
            "export_seconds": conversion.program.seconds,
            "artifacts": {
                name: {"seconds": made.seconds, "peak_memory": made.peak_memory, "details": made.details}
                for name, made in conversion.artifacts.items()
            },
            "failures": {
                name: {"message": failed.message, "tail": failed.tail, "reproduce": failed.reproduce}
                for name, failed in conversion.failures.items()
            },
        },
        "architecture": result.behaviour.plain(),
        "parity": [evidence.plain() for evidence in result.parity],
        "latency": result.latency.plain() if result.latency else None,
        "precision": result.precision.plain() if result.precision else None,
        "served": [evidence.plain() for evidence in outcome.served],
    }


def _plan_as_dict(plan: PackagePlan, request: PackageRequest) -> dict[str, Any]:
    checkpoint = plan.inputs.checkpoint
    engine = plan.engine
    return {
        "checkpoint": str(checkpoint.path),
        "architecture": f"{checkpoint.architecture} ({checkpoint.how})",
        "classes": len(plan.inputs.classes) if plan.inputs.classes else None,
        "inputs": {tensor.name: [tensor.dtype, *tensor.shape] for tensor in checkpoint.inputs},
        "samples": str(request.samples) if request.samples else None,
        "formats": list(plan.formats),
        "left_out": plan.left_out,
        "target": request.target.name,
        "precision": request.precision,
        "max_batch": request.max_batch,
        "served_by": f"{engine.kind} Triton {engine.release}" if engine else None,
        "repository": str(request.repository),
        "would_publish": [f"{name}:{number}" for name, number in plan.next_versions.items()],
        "bound_to": f"{plan.inputs.bound.format}, by version {plan.inputs.bound.version}"
        if plan.inputs.bound
        else None,
    }


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
