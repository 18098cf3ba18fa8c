"""`stqp project`: what a QuPath project holds, whether it is whole, and its classes."""

import json
import time
from calendar import timegm
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option

from stqp.errors import InputError, UsageError
from stqp.files import without_nan
from stqp.record import RunRecord

if TYPE_CHECKING:
    from stqp.qupath.inspection import EntryInfo, ProjectInfo
    from stqp.qupath.validation.findings import Finding

_WIDTH = 80
_MOST_CLASSES, _MOST_ALIKE = 8, 10
# where each command lives
_ELSEWHERE = {
    "export": "Write objects as GeoJSON, GeoParquet or csv.",
    "import": "Add objects of GeoJSON or parquet files.",
    "relink": "Find images that moved.",
    "merge": "Make one project of several.",
}


class _Group(click.Group):
    """A group whose second half is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work."""
        return [*self.commands, *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the other module for its commands."""
        if cmd_name in _ELSEWHERE:
            from stqp_cli import project_files

            found = getattr(project_files, f"{cmd_name}_command")
            assert isinstance(found, click.Command)
            return found
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            here = [(name, (c.help or "").split("\n\n")[0]) for name, c in self.commands.items()]
            formatter.write_dl([*here, *_ELSEWHERE.items()])


@click.group(
    cls=_Group,
    epilog="\b\nExamples:\n  stqp project info slide-project\n  stqp project validate slide-project\n"
    "  stqp project relink slide-project --search /new/slides\n",
)
def command() -> None:
    """Look at QuPath projects, check, change and merge them; QuPath and Java are not needed."""


@command.command(
    epilog="\b\nExamples:\n  stqp project info slide-project\n"
    "  stqp project info slide-project --entry slide.svs --json -\n"
)
@click.argument("project", type=PATH)
@click.option("--json", "json_file", type=click.Path(allow_dash=True), metavar="FILE",
              help="Write everything as JSON; - for stdout.")  # fmt: skip
@click.option("--entry", "entries", multiple=True, metavar="NAME", help="Only this image. Repeatable.")
@verbose_option
def info(project: Path, json_file: str | None, entries: tuple[str, ...], verbose: bool) -> None:
    """Show images, their state and size, objects by kind and class, and who wrote them."""
    set_up_logging(verbose)
    from stqp.qupath.inspection import inspect_project
    from stqp.qupath.project import QuPathProject

    with QuPathProject.open(project) as opened, progress_bar("reading", "image") as progress:
        found = inspect_project(opened, entries, progress)
    if json_file:
        text = json.dumps(without_nan(found.to_dict()), indent=2, ensure_ascii=False) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
            return
        from stqp import files

        files.write_bytes(Path(json_file), text.encode())
    click.echo("\n".join(info_lines(found)))


@command.command(
    epilog="\b\nExamples:\n  stqp project validate slide-project\n  stqp project validate slide-project --json\n\n"
    "Exit code 3 where QuPath would refuse or lose something. Nothing of the project is changed."
)
@click.argument("project", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON on stdout.")
@verbose_option
def validate(project: Path, as_json: bool, verbose: bool) -> None:
    """Open everything, and say what QuPath 0.4 to 0.7 would stumble over."""
    set_up_logging(verbose)
    from stqp.qupath.validation.project import validate_project

    with progress_bar("checking", "image") as progress:
        findings = validate_project(project, progress)
    counts = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning", "note")}
    if as_json:
        content = {"project": str(project), "counts": counts, "findings": [f.to_dict() for f in findings]}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(finding_lines(findings, counts)))
    if counts["error"]:
        raise InputError(f"QuPath would refuse or lose something of {project} ({_number(counts['error'], 'error')})")


@command.command(
    epilog="\b\nExamples:\n  stqp project classes slide-project\n"
    "  stqp project classes slide-project --set 'Tumor=#c80000'\n"
    "  stqp project classes slide-project --rename Neoplastic=Tumor\n"
    "  stqp project classes slide-project --from taxonomy\n\n"
    "Changes are made in the order from, set, rename, remove. A renamed class is renamed in all objects of all "
    "images, which counts as no correction. Objects of a removed class keep it."
)
@click.argument("project", type=PATH)
@click.option("--set", "settings", multiple=True, metavar="NAME=#rrggbb", help="Add a class, or colour it. Repeatable.")
@click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help="Give a class another name. Repeatable.")
@click.option("--remove", "removals", multiple=True, metavar="NAME", help="Take a class off the list. Repeatable.")
@click.option("--from", "source", metavar="FILE", help="Add the classes of a classes.json, of a JSON object of name "
              "and colour, or of 'taxonomy', stqp's own.")  # fmt: skip
@json_option
@verbose_option
def classes(
    project: Path,
    settings: tuple[str, ...],
    renames: tuple[str, ...],
    removals: tuple[str, ...],
    source: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """List classes with colours and objects; add, colour, rename and remove them."""
    set_up_logging(verbose)
    from stqp.qupath.colors import parse_color, read_colors
    from stqp.qupath.inspection import inspect_project
    from stqp.qupath.project import QuPathProject
    from stqp.qupath.renaming import rename_class

    pairs = [_pair(text, "NAME=#rrggbb") for text in settings]
    colors = {**(read_colors(source) if source else {}), **{name: parse_color(color) for name, color in pairs}}
    renaming = [_pair(text, "OLD=NEW") for text in renames]
    record = RunRecord("project classes", {
        "project": project, "set": [*settings], "rename": [*renames], "remove": [*removals], "from": source,
    })  # fmt: skip
    changes = bool(colors or renaming or removals)
    with QuPathProject.open(project, "r+" if changes else "r") as opened:
        if colors:
            opened.set_classes({**opened.classes, **colors})
            record.count("classes set", len(colors))
        for old, new in renaming:
            changed = rename_class(opened, old, new)
            record.count(f"objects renamed from {old} to {new}", sum(changed.values()))
        if absent := [name for name in removals if name not in opened.classes]:
            raise UsageError(f"the project {project} has no class {absent[0]!r} to remove")
        if removals:
            opened.set_classes({n: c for n, c in opened.classes.items() if n not in removals})
            record.count("classes removed", len(removals))
        if changes:
            opened.save()
        found = inspect_project(opened)
    record.results["classes"] = [
        {"name": name, "color": found.classes.get(name), "objects": found.class_objects.get(name, 0)}
        for name in dict.fromkeys([*found.classes, *found.class_objects])
    ]
    report(record, as_json, *class_lines(found.classes, found.class_objects))


def _pair(text: str, form: str) -> tuple[str, str]:
    name, sign, value = text.rpartition("=") if form.startswith("NAME") else text.partition("=")
    if not sign or not name.strip() or not value.strip():
        raise UsageError(f"expected {form}, found {text!r}")
    return name.strip(), value.strip()


def info_lines(found: "ProjectInfo") -> list[str]:
    """Lines about a project for a person."""
    lines = [f"project  {found.file}", f"QuPath   {found.version or '?'}, saved {_local(found.saved)}"]
    states: dict[str, int] = {}
    for entry in found.entries:
        states[entry.image] = states.get(entry.image, 0) + 1
    shown = "" if len(found.entries) == found.images else f", {len(found.entries)} shown"
    lines.append(f"images   {found.images}{shown} ({_counts(states)})" if states else "images   0")
    lines.append("")
    lines += class_lines(found.classes, found.class_objects)
    for entry in found.entries:
        lines += ["", *_entry_lines(entry)]
    return lines


def _entry_lines(entry: "EntryInfo") -> list[str]:
    size = f"{entry.width} x {entry.height} px" if entry.width else "size unknown"
    scale = f"{entry.mpp:.4g} µm/px" if entry.mpp else "no µm/px"
    kind = f", {entry.image_type}" if entry.image_type else ""
    where = entry.path or entry.uri or "none"
    rows = [("image", f"{entry.image}: {where}"), ("size", f"{size}, {scale}{kind}")]
    if entry.error:
        rows.append(("objects", entry.error))
    else:
        total = f"{entry.objects:,}: " if len(entry.kinds) > 1 else ""
        rows.append(("objects", total + (_counts(entry.kinds) or "none")))
    top = dict([*entry.classes.items()][:_MOST_CLASSES])
    if top:
        more = len(entry.classes) - len(top)
        text = ", ".join(f"{name} {number:,}" for name, number in top.items())
        rows.append(("classes", text + (f" and {more} more" if more else "")))
    for writer in entry.writers:
        corrected = f", {writer.corrected:,} corrected since" if writer.corrected else ""
        when = f", last run {_local(writer.last_run)}" if writer.last_run else ""
        rows.append(("by stqp", f"{writer.source}: {_counts(writer.kinds)}{corrected}{when}"))
    if entry.others:
        rows.append(("by others", f"{_counts(entry.others)} (by hand, or by QuPath's commands)"))
    if entry.tags:
        rows.append(("tags", ", ".join(entry.tags)))
    if entry.description:
        rows.append(("about", " ".join(entry.description.split())))
    if entry.saved:
        rows.append(("saved", _local(entry.saved)))
    lines = [f"{entry.id}  {entry.name}"]
    for name, text in rows:
        lines += _wrapped(text, f"   {name:<11}", " " * 14)
    return lines


def class_lines(colors: Mapping[str, str], objects: Mapping[str, int]) -> list[str]:
    """Lines of a table of classes."""
    names = list(dict.fromkeys([*colors, *objects]))
    if not names:
        return ["no classes"]
    width = min(max(len(name) for name in [*names, "class"]), 40)
    lines = [f"{'class':<{width}}  {'colour':<8}{'objects':>10}"]
    return lines + [f"{n:<{width}}  {colors.get(n, '-'):<8}{objects.get(n, 0):>10,}" for n in names]


def finding_lines(findings: "Sequence[Finding]", counts: Mapping[str, int]) -> list[str]:
    """Lines of findings for a person; those that are alike stand together."""
    if not findings:
        return ["Nothing found: QuPath 0.4 to 0.7 open everything."]
    from stqp.qupath.validation.findings import some

    lines = [", ".join(_number(number, severity) for severity, number in counts.items())]
    groups: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.code, finding.versions, finding.do), []).append(finding)
    for (severity, code, versions, do), group in groups.items():
        which = "" if len(versions) == 4 else f" in QuPath {', '.join(versions)}"
        lines += ["", f"{severity.upper()} {code}{which}"]
        whose: dict[str, list[str]] = {}
        for finding in group:
            whose.setdefault(finding.what, []).append(finding.entry or finding.file)
        for what, names in [*whose.items()][:_MOST_ALIKE]:
            lines += _wrapped(f"{some(names, 5)}: {what}", "  ", "    ")
        if len(whose) > _MOST_ALIKE:
            lines.append(f"  and {len(whose) - _MOST_ALIKE} more like this (--json lists all)")
        if do != "Nothing.":
            lines += _wrapped(do, "  -> ", "     ")
    return lines


def _wrapped(text: str, first: str, others: str) -> list[str]:
    wrapper = TextWrapper(_WIDTH, first, others, break_long_words=False, break_on_hyphens=False)
    return wrapper.wrap(text) or [first.rstrip()]


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n:,} {name.removesuffix('s') if n == 1 else name}" for name, n in numbers.items())


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _local(moment: str | None) -> str:
    """Time of day here, of one in UTC."""
    if not moment:
        return "never"
    seconds = timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ"))
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
