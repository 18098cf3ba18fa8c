"""`stqp patches`: cut, look at, take over and hand on training patches."""

from pathlib import Path
from typing import Any

import click
from stqp_cli.common import PATH, json_option, progress_bar, report, set_up_logging, type_names, verbose_option
from stqp_cli.options import SectionedCommand, cut_flags, cut_options

from stqp.record import RunRecord

# as stqp.patches.importing.LAYOUTS and stqp.patches.layouts.export.LAYOUTS have them; a test holds it
READ = ("pannuke", "consep", "kumar", "hovernet", "image+map")
WRITTEN = ("pannuke", "hovernet", "consep", "coco", "cellvit")
_OBJECTS = ("objects", "predictions", "min_confidence", "min_stain", "max_misalignment", "weight_by")
_workers = click.option("--workers", type=click.IntRange(1), help="Processes that cut. Default: by the machine.")


GROUP_EPILOG = """\b
Examples:
  stqp patches cut slide --out patches.h5
  stqp patches show patches.h5 --out sheet.png
  stqp patches import CoNSeP --from consep --out consep.h5
  stqp train consep.h5 --out runs/manual
"""


@click.group(epilog=GROUP_EPILOG)
def command() -> None:
    """Cut training patches, look at them, take over and hand on those of other programs.

    stqp train cuts patches by itself; these commands are for a look beforehand, and for manual data sets.
    """


CUT_EPILOG = """\b
Examples:
  stqp patches cut slide --out patches.h5
  stqp patches cut cohort --out patches.h5 --split metadata:patient --test 0.2 --holdout organ=colon
  stqp patches cut slide manual.h5 --out both.h5
  stqp patches cut slide --out patches.h5 --min-confidence 0.6 --min-stain 0.05 --max-misalignment 3

A file that was cut from the same data with the same options is left as it is; a cut that was stopped goes on.
Files of patches may stand among PROJECTS: their patches stay on their sides, and all come into one file.
"""


@command.command(epilog=CUT_EPILOG, cls=SectionedCommand)
@click.argument("projects", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, metavar="FILE", help="File of patches (.h5) to write.")
@cut_flags()
@_workers
@json_option
@verbose_option
def cut(
    as_json: bool, verbose: bool, projects: tuple[Path, ...], out: Path, workers: int | None, **values: Any
) -> None:
    """Cut the typed nuclei of QuPath PROJECTS into patches with their maps, and split them.

    Nuclei are read as they stand, so a correction made in QuPath counts. Annotations of the class Train or Region
    bound what is used, Ignore masks. What an ST run did not cover is masked. Unknown nuclei train segmentation,
    not typing.
    """
    set_up_logging(verbose)
    from stqp.patches.cut import cut_patches

    options = cut_options(values)
    record = RunRecord("patches cut", {"projects": [*projects], "out": out, "workers": workers, **options.to_dict()})
    with progress_bar("Cutting patches", "block") as progress:
        cut_patches(projects, out, record, options, workers=workers, progress=progress)
    _finish(record, out, as_json)


IMPORT_EPILOG = """\b
Examples:
  stqp patches import PanNuke --from pannuke --out pannuke.h5 --patch-size 256 --validate-on fold=2 --holdout fold=3
  stqp patches import CoNSeP --from consep --out consep.h5 --holdout part=Test
  stqp patches import tiles --from image+map --image-mpp 0.5 --type 1=Inflammatory --type 2=Epithelial --out own.h5

\b
pannuke    images.npy and masks.npy in folds, as published
consep     images, and maps (.mat, .npy, .npz) of nuclei and types in a folder Labels beside theirs
kumar      the same without types
hovernet   arrays (.npy) of red, green, blue, nucleus, type, as its official training reads them
image+map  images with a map (.npz, .npy, .mat, .tif, .png) of the same name beside them or in a folder Labels;
           inst_map, inst or instances, and type_map, or types (with ids, where a nucleus has a number of its own)
"""


@command.command("import", epilog=IMPORT_EPILOG, cls=SectionedCommand)
@click.argument("source", type=PATH)
@click.option("--from", "layout", type=click.Choice(READ), required=True, help="Layout of the set.")
@click.option("--out", required=True, type=PATH, metavar="FILE", help="File of patches (.h5) to write.")
@click.option(
    "--image-mpp", type=click.FloatRange(0, min_open=True), metavar="UM",
    help="µm per px of the images. Default: what they say, 0.25 for published sets.",
)  # fmt: skip
@click.option(
    "--type", "types", multiple=True, metavar="NUMBER=CLASS", help="Class of a number of the maps. Repeatable."
)
@click.option("--untyped-as", metavar="CLASS", help="Class of nuclei without a type. Default: Nucleus.")
@cut_flags(without=_OBJECTS)
@_workers
@json_option
@verbose_option
def import_(
    as_json: bool,
    verbose: bool,
    source: Path,
    layout: str,
    out: Path,
    image_mpp: float | None,
    types: tuple[str, ...],
    untyped_as: str | None,
    workers: int | None,
    **values: Any,
) -> None:
    """Make patches of a set of labelled images in the folder SOURCE, so that it trains as projects do.

    Images are split whole, unless --split block is asked for. Their metadata are name, and fold and tissue (PanNuke)
    or part (the folder within the set).
    """
    set_up_logging(verbose)
    from stqp.patches.importing import UNTYPED_NAME, import_patches

    options = cut_options(values, split="slide")
    given = {"source": source, "from": layout, "out": out, "image_mpp": image_mpp, "types": types}
    record = RunRecord("patches import", {**given, "untyped_as": untyped_as, "workers": workers, **options.to_dict()})
    with progress_bar("Cutting patches", "block") as progress:
        import_patches(
            source, layout, out, record, options, image_mpp=image_mpp, type_names=type_names(types),
            untyped_as=untyped_as or UNTYPED_NAME, workers=workers, progress=progress,
        )  # fmt: skip
    _finish(record, out, as_json)


def _finish(record: RunRecord, out: Path, as_json: bool) -> None:
    record.write(out.with_name(f"{out.name}.json"))
    report(record, as_json, f"patches: {out}", f"Next: stqp patches show {out} --out sheet.png")


@command.command(epilog="\b\nExamples:\n  stqp patches info patches.h5\n  stqp patches info patches.h5 --json\n")
@click.argument("file", type=PATH)
@json_option
@verbose_option
def info(as_json: bool, verbose: bool, file: Path) -> None:
    """Say what a FILE of patches holds: images, classes, sides, and what became of the labels.

    A nucleus that two patches show counts twice.
    """
    set_up_logging(verbose)
    from stqp.patches.summary import describe, table

    record = RunRecord("patches info", {"file": file})
    found = describe(file)
    record.results.update(found)
    report(record, as_json, *table(found))


SHOW_EPILOG = """\b
Examples:
  stqp patches show patches.h5 --out sheet.png
  stqp patches show patches.h5 --out sheet.png --side validation --number 24 --draw-seed 3
"""


@command.command(epilog=SHOW_EPILOG)
@click.argument("file", type=PATH)
@click.option("--out", required=True, type=PATH, metavar="PNG", help="Picture to write.")
@click.option("--side", type=click.Choice(["training", "validation", "test"]), help="Of this side only.")
@click.option("--number", type=click.IntRange(1, 400), default=12, show_default=True, help="How many patches.")
@click.option("--columns", type=click.IntRange(1), help="Patches beside each other.")
@click.option("--draw-seed", type=int, default=0, show_default=True, help="Of the choice of patches.")
@json_option
@verbose_option
def show(
    as_json: bool, verbose: bool, file: Path, out: Path, side: str | None, number: int, columns: int | None,
    draw_seed: int,
) -> None:  # fmt: skip
    """Draw a contact sheet of patches: outlines in the colours of the classes, masked area hatched.

    Patches with the rarest classes come first. A nucleus whose type counts less than half has a thin outline.
    """
    set_up_logging(verbose)
    from stqp.patches.sheet import chosen, contact_sheet
    from stqp.patches.store import PatchFile
    from stqp.report.overlay import save_png

    record = RunRecord("patches show", {"file": file, "out": out, "side": side, "number": number})
    patches = PatchFile(file)
    rows = chosen(patches, number, side, draw_seed)
    save_png(out, contact_sheet(patches, rows, columns))
    record.count("patches drawn", len(rows))
    report(record, as_json, f"sheet: {out}")


EXPORT_EPILOG = """\b
Examples:
  stqp patches export patches.h5 --to hovernet hovernet_data
  stqp patches export patches.h5 --to coco coco_data

\b
pannuke   Fold 1 (training), 2 (validation), 3 (test): images.npy, masks.npy, types.npy
hovernet  arrays (.npy) of red, green, blue, nucleus, type in training, validation, test
consep    Images (.png) and Labels (.mat: inst_map, type_map, inst_type, inst_centroid)
coco      images, and annotations/instances_SIDE.json
cellvit   fold0 (training), 1, 2: images, labels, types.csv, cell_count.csv; dataset_config.yaml

Also classes.json, and patches.csv, which says where each patch comes from.
"""


@command.command(epilog=EXPORT_EPILOG)
@click.argument("file", type=PATH)
@click.option("--to", "layout", type=click.Choice(WRITTEN), required=True, help="Layout to write.")
@click.argument("folder", type=PATH)
@json_option
@verbose_option
def export(as_json: bool, verbose: bool, file: Path, layout: str, folder: Path) -> None:
    """Write the patches of FILE into FOLDER in the layout of another program."""
    set_up_logging(verbose)
    from stqp.patches.layouts.export import export_patches

    record = RunRecord("patches export", {"file": file, "to": layout, "folder": folder})
    with progress_bar("Writing patches", "patch") as progress:
        export_patches(file, layout, folder, record, progress)
    record.write(folder / "export.json")
    report(record, as_json, f"written: {folder}")
