"""`deployctl targets [NAME]`: where a version can run, and how each fact about it is known.

Owns the words on the terminal. The table is `deploy.releases`'s, the names are `deploy.targets`'s.
"""

import json

import click


@click.command("targets")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the targets as JSON.")
def command(*, name: str | None, as_json: bool) -> None:
    """List the Triton releases that versions can be made for, or explain the target NAME.

    A target is local-cpu, local-cuda, RELEASE-cpu or RELEASE-cuda-smNN, such as 26.08-cuda-sm90.
    """
    from deploy.targets import all_targets, find_target

    if as_json:
        found = [find_target(name)] if name else list(all_targets().values())
        click.echo(json.dumps([_as_dict(target.plain()) for target in found], indent=2))
        return
    from deploy.report.targets_tables import releases_table, target_table
    from deploy.report.terminal import show

    show(target_table(find_target(name)) if name else releases_table())


def _as_dict(target: dict[str, object]) -> dict[str, object]:
    """A target with its facts, each with how it is known, and its release's defects in full."""
    from deploy.releases import read_releases

    table = read_releases()
    release = next((known for known in table.releases if known.triton == target["triton"]), None)
    facts = release.facts if release else {}
    return {
        **target,
        "facts": {
            name: {"value": fact.value, "how": fact.how, "source": table.sources[fact.source]}
            for name, fact in facts.items()
        },
        "bugs": {name: table.bugs[name].model_dump() for name in (release.bugs if release else ())},
    }
