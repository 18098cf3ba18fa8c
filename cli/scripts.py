"""`stqp scripts`."""

import json
from pathlib import Path

import click
from stqp_cli.common import PATH, set_up_logging

EPILOG = """\b
Examples:
  stqp scripts list
  stqp scripts install slide-project
  stqp scripts install slide-project --only review_nuclei --only export_corrections

In QuPath the scripts are under Automate > Project scripts. Each begins with what it does, how to run it, also
from QuPath's own command line, and its arguments. They run in QuPath 0.4 to 0.7.
"""
_SAID = {
    "new": "installed",
    "same": "is there already",
    "updated": "updated",
    "kept": "kept as it is, since somebody changed it",
    "replaced": "replaced; what somebody changed is now",
}


@click.group(epilog=EPILOG)
def command() -> None:
    """List stqp's scripts for QuPath, and put them into a project."""


@command.command("list", epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print names and headers as JSON on stdout.")
def list_scripts(as_json: bool) -> None:
    """Print the name of each script and what it does."""
    from stqp.qupath.scripts import available

    scripts = available()
    if as_json:
        content = [{"name": s.name, "summary": s.summary, "header": s.header} for s in scripts]
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    width = max(len(script.name) for script in scripts)
    for script in scripts:
        click.echo(f"{script.name:<{width}}  {script.summary}")


@command.command("install", epilog=EPILOG)
@click.argument("project", type=PATH)
@click.option("--only", multiple=True, metavar="NAME", help="Only this script. Repeatable.")
@click.option("--force", is_flag=True, help="Replace what somebody changed too; theirs is kept as NAME.groovy.bak.")
@click.option("-v", "--verbose", is_flag=True, help="Print what somebody changed, line by line.")
def install_scripts(project: Path, only: tuple[str, ...], force: bool, verbose: bool) -> None:
    """Put the scripts into PROJECT, where QuPath's menu Project scripts shows them.

    A script that somebody changed in the project stays, unless --force is given.
    """
    set_up_logging()
    from stqp.qupath.scripts import install

    done = install(project, only, force)
    for one in done:
        line = f"{one.name}: {_SAID[one.state]}"
        if one.state == "replaced":
            line += f" {one.path.name}.bak"
        if one.difference:
            added, gone = one.changes
            line += f" (+{added} -{gone} lines)"
        click.echo(line)
        if verbose and one.difference:
            click.echo(one.difference)
    if any(one.state == "kept" for one in done):
        click.echo("--force replaces what was changed, -v shows the changes")
    if done:
        click.echo(f"In QuPath: Automate > Project scripts ({done[0].path.parent})")
