"""`stqp project`: objects into files and from files, images that moved, several projects in one."""

from pathlib import Path

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, verbose_option

from stqp.errors import InputError, UsageError
from stqp.record import RunRecord

_ENTRIES = click.option(
    "--entry", "entries", multiple=True, metavar="NAME", help="Only this image (name or id). Repeatable."
)


@click.command(
    "export",
    epilog="\b\nExamples:\n  stqp project export slide-project --out objects\n"
    "  stqp project export slide-project --out tables --format parquet --kind detections,cells\n"
    "  stqp project export slide-project --out ranger --format ranger --entry slide.svs\n\n"
    "Each image that has objects becomes a file of its name. geojson is for QuPath and keeps everything; parquet is "
    "GeoParquet; csv has no shapes; ranger is GeoJSON for xeniumranger import-segmentation (--units pixels, with the "
    "alignment as --coordinate-transform). Coordinates are full-resolution pixels.",
)
@click.argument("project", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="DIR", help="Folder of the files; made where there is none.")
@click.option("--format", "form", type=click.Choice(["geojson", "parquet", "csv", "ranger"]), default="geojson",
              show_default=True, help="What is written.")  # fmt: skip
@_ENTRIES
@click.option("--kind", "kinds", multiple=True, metavar="KIND[,KIND]",
              help="Only annotations, detections, cells, tiles or cores. Repeatable.")  # fmt: skip
@click.option("--class", "classes", multiple=True, metavar="NAME",
              help="Only objects of this class; Unclassified for those without. Repeatable.")  # fmt: skip
@click.option("--gzip", "compress", is_flag=True, help="Compress GeoJSON or csv (.gz).")
@click.option("--overwrite", is_flag=True, help="Replace files that are there.")
@json_option
@verbose_option
def export_command(
    project: Path,
    out: Path,
    form: str,
    entries: tuple[str, ...],
    kinds: tuple[str, ...],
    classes: tuple[str, ...],
    compress: bool,
    overwrite: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Write the objects of a project as GeoJSON, GeoParquet or csv, a file for each image."""
    set_up_logging(verbose)
    from stqp.qupath.exchange import export_objects
    from stqp.qupath.project import QuPathProject

    record = RunRecord("project export", {
        "project": project, "out": out, "format": form, "entry": [*entries], "kind": [*kinds], "class": [*classes],
        "gzip": compress, "overwrite": overwrite,
    })  # fmt: skip
    chosen = [kind.strip() for text in kinds for kind in text.split(",") if kind.strip()]
    with QuPathProject.open(project) as opened, progress_bar("exporting", "image") as progress:
        written = export_objects(
            opened, out, form, entries=entries, kinds=chosen, classes=classes, compress=compress,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
        without = len(entries or opened.entries) - len(written)
    record.count("files written", len(written))
    record.count("objects written", sum(w.objects for w in written))
    if mended := sum(w.mended for w in written):
        record.count("objects with an outline that was mended", mended)
    record.skip("objects that the format has no place for", sum(w.left_out for w in written))
    record.skip("images without such objects", without)
    record.results["files"] = [vars(w) for w in written]
    report(record, as_json, *(f"{w.objects:>10,} {w.file}" for w in written))


@click.command(
    "import",
    epilog="\b\nExamples:\n  stqp project import slide-project objects/slide.svs.geojson\n"
    "  stqp project import slide-project nuclei.parquet --entry slide.svs --source cellpose\n\n"
    "Without --entry a file goes to the image that it is named after. Objects are marked with their source, so a "
    "second import replaces what the first wrote, but for what somebody corrected since. Coordinates are "
    "full-resolution pixels.",
)
@click.argument("project", type=PATH)
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="FILE...")
@click.option("--entry", metavar="NAME", help="Image (name or id) that gets the objects of all files.")
@click.option("--source", metavar="TEXT", help="What the objects are marked with. Default: import:<name of the file>.")
@click.option("--replace", is_flag=True, help="Replace other objects of the image that have the same ids.")
@click.option("--discard-corrections", "keep_corrections", flag_value=False, default=True,
              help="Overwrite what somebody corrected since the last import.")  # fmt: skip
@json_option
@verbose_option
def import_command(
    project: Path,
    paths: tuple[Path, ...],
    entry: str | None,
    source: str | None,
    replace: bool,
    keep_corrections: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Add the objects of GeoJSON or parquet files to the images of a project."""
    set_up_logging(verbose)
    from stqp.qupath.exchange import import_objects
    from stqp.qupath.project import QuPathProject

    record = RunRecord("project import", {
        "project": project, "files": [*paths], "entry": entry, "source": source, "replace": replace,
        "keep_corrections": keep_corrections,
    })  # fmt: skip
    with QuPathProject.open(project, "r+") as opened, progress_bar("importing", "file") as progress:
        done = import_objects(
            opened, paths, entry=entry, source=source, replace=replace, keep_corrections=keep_corrections,
            progress=progress,
        )  # fmt: skip
    for path in paths:
        record.add_input(path)
    record.count("objects added", sum(d.objects for d in done))
    record.count("objects replaced", sum(d.replaced for d in done))
    record.skip("objects that somebody corrected since (kept as they are)", sum(d.corrected for d in done))
    record.skip("objects whose ids the image has already (--replace replaces them)", sum(d.present for d in done))
    record.results["files"] = [vars(d) for d in done]
    report(record, as_json, *(f"{d.objects:>10,} of {d.file} in {d.entry}, as {d.source}" for d in done))


@click.command(
    "relink",
    epilog="\b\nExamples:\n  stqp project relink slide-project --map /old/slides=/new/slides\n"
    "  stqp project relink slide-project --map 'D:\\slides=/mnt/slides' --dry-run\n"
    "  stqp project relink slide-project --search /data\n\n"
    "A file is taken when it has the size that the project notes of the image. Exit code 3 where images stay missing.",
)
@click.argument("project", type=PATH)
@click.option("--map", "maps", multiple=True, metavar="OLD=NEW",
              help="Folder where images were, and where they are. Repeatable.")  # fmt: skip
@click.option("--search", multiple=True, type=PATH, metavar="DIR",
              help="Folder to search for files of the images' names. Repeatable.")  # fmt: skip
@click.option("--no-check", "check", flag_value=False, default=True,
              help="Take --map as it is, for images that are only on another machine.")  # fmt: skip
@click.option("--force", is_flag=True, help="Apply --map also to images that are found.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@verbose_option
def relink_command(
    project: Path,
    maps: tuple[str, ...],
    search: tuple[Path, ...],
    check: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Find the images of a project that are no longer where it says."""
    set_up_logging(verbose)
    from stqp.qupath.project import QuPathProject

    pairs = [text.partition("=") for text in maps]
    if wrong := next((text for text, pair in zip(maps, pairs, strict=True) if not pair[0] or not pair[2]), None):
        raise UsageError(f"--map expects OLD=NEW, found {wrong!r}")
    record = RunRecord("project relink", {
        "project": project, "map": [*maps], "search": [*search], "check": check, "force": force, "dry_run": dry_run,
    })  # fmt: skip
    with QuPathProject.open(project, "r" if dry_run else "r+") as opened:
        done = opened.relink([(old, new) for old, _, new in pairs], search, check=check, force=force, dry_run=dry_run)
    statuses: dict[str, int] = {}
    for one in done:
        statuses[one.status] = statuses.get(one.status, 0) + 1
    for status, number in statuses.items():
        record.count(f"images {status}{' (dry run)' if dry_run and status == 'relinked' else ''}", number)
    record.results["images"] = [{**vars(one), "candidates": [str(c) for c in one.candidates]} for one in done]
    lines = []
    for one in done:
        lines.append(f"{one.id}  {one.name}: {one.status}")
        lines += [f"   was {one.old}", f"   now {one.new}"] if one.new else []
        if one.status not in ("relinked", "found already", "no file"):
            lines += [f"   was {one.old}", *(f"   seen {path}" for path in one.candidates)]
    report(record, as_json, *lines)
    missing = [one.name for one in done if one.status not in ("relinked", "found already", "no file")]
    if missing:
        from stqp.qupath.validation.findings import some

        raise InputError(f"{len(missing)} of {len(done)} images stay missing: {some(missing)}")


@click.command(
    "merge",
    epilog="\b\nExamples:\n  stqp project merge cohort slide1-project slide2-project\n"
    "  stqp project merge cohort */project.qpproj --on-duplicate skip\n\n"
    "Objects are copied byte for byte, and the projects merged stay as they are. Images get new ids; one whose name "
    "is taken gets the name of its project behind it.",
)
@click.argument("out", type=PATH)
@click.argument("projects", nargs=-1, required=True, type=PATH, metavar="PROJECT...")
@click.option("--on-duplicate", type=click.Choice(["refuse", "keep", "skip", "rename"]), default="refuse",
              show_default=True, help="What to do with an image that an earlier project has too: nothing at all, keep "
              "both, leave the later one out, or keep both under different names.")  # fmt: skip
@json_option
@verbose_option
def merge_command(out: Path, projects: tuple[Path, ...], on_duplicate: str, as_json: bool, verbose: bool) -> None:
    """Make one new project OUT of several."""
    set_up_logging(verbose)
    from stqp.qupath.merging import merge_projects

    record = RunRecord("project merge", {"out": out, "projects": [*projects], "on_duplicate": on_duplicate})
    with progress_bar("copying", "image") as progress:
        merged = merge_projects(out, projects, on_duplicate, progress)
    kept = [entry for entry in merged.entries if entry.id is not None]
    record.count("projects merged", len(projects))
    record.count("images", len(kept))
    record.skip("images that an earlier project has", len(merged.entries) - len(kept))
    for name in merged.colors:
        record.warn(f"the class {name} has another colour; the first project's is taken")
    for name in merged.conflicts:
        record.warn(f"{name} differs from that of an earlier project, and is left out")
    record.results.update(merged.to_dict())
    renamed = [f"  {e.old_name} of {e.project} is {e.name}" for e in kept if e.name != e.old_name]
    report(record, as_json, *(["renamed:", *renamed] if renamed else []), f"project: {merged.file}")
