"""What TIAToolbox needs to run a network without stqp: a script, and for `lite` the class in one file."""

from __future__ import annotations

import ast
from pathlib import Path

from stqp import __version__
from stqp.inference.postprocess import MPP, Sizes
from stqp.training.network import ARCHITECTURES

CLASS_FILE, SCRIPT_FILE = "hovernet_lite.py", "run_tiatoolbox.py"

_SCRIPT = '''"""Find and type nuclei on slides with TIAToolbox.

    python run_tiatoolbox.py slide.svs --out results
    python run_tiatoolbox.py patch.png --patches --out results
    python run_tiatoolbox.py --help

Needs tiatoolbox 2.1 or later, and the files beside this script: model.pth, manifest.json{more}.
The results are TIAToolbox's annotation stores (.db), or zarr where Python's sqlite takes no extensions.
Written by stqp {version}, which it does not need.
"""

import argparse
import json
import sqlite3
import sys
from pathlib import Path

import torch
import yaml
from tiatoolbox import rcParam
from tiatoolbox.models.engine.io_config import IOInstanceSegmentorConfig
from tiatoolbox.models.engine.multi_task_segmentor import MultiTaskSegmentor

HERE = Path(__file__).resolve().parent
KINDS = ("annotationstore", "zarr", "qupath")
STORES = hasattr(sqlite3.Connection, "enable_load_extension")  # some builds of Python have none
sys.path.insert(0, str(HERE))
{import_line}


def load_model():
    """The network with its weights."""
    manifest = json.loads((HERE / "manifest.json").read_text(encoding="utf-8"))
    names = {{int(number): name for number, name in (manifest["nuc_type_dict"] or {{}}).items()}} or None
    model = {make}
    weights = torch.load(HERE / "model.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def load_ioconfig():
    """µm per pixel and sizes of its windows."""
    with (HERE / "ioconfig.yaml").open(encoding="utf-8") as file:
        return IOInstanceSegmentorConfig(**yaml.safe_load(file))


def main():
    """Run TIAToolbox's engine."""
    parser = argparse.ArgumentParser(description="Find and type nuclei with TIAToolbox.")
    parser.add_argument("images", nargs="+", type=Path, help="slides, or with --patches patches of {side} px")
    parser.add_argument("--out", required=True, type=Path, help="folder of the results; it must not exist")
    parser.add_argument("--patches", action="store_true", help="the images are patches, not slides")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=0, help="processes that read the slides")
    parser.add_argument("--output-type", default=KINDS[0] if STORES else KINDS[1], choices=KINDS)
    arguments = parser.parse_args()
    rcParam["torch_compile_mode"] = "disable"  # no compiler is needed
    engine = MultiTaskSegmentor(
        model=load_model(),
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        device=arguments.device,
    )
    written = engine.run(
        arguments.images,
        patch_mode=arguments.patches,
        ioconfig=load_ioconfig(),
        save_dir=arguments.out,
        output_type=arguments.output_type,
    )
    print(written)


if __name__ == "__main__":  # TIAToolbox's workers import this file again on Windows and macOS
    main()
'''


def script(architecture: str) -> str:
    """A script that runs a network in TIAToolbox's engine; it works without stqp."""
    if architecture == "lite":
        import_line = "from hovernet_lite import HoVerNetLite  # noqa: E402"
        make = 'HoVerNetLite(num_types=manifest["num_types"], nuc_type_dict=names)'
    else:
        import_line = "from tiatoolbox.models.architecture.hovernet import HoVerNet  # noqa: E402"
        make = f'HoVerNet(num_types=manifest["num_types"], mode="{architecture}", nuc_type_dict=names)'
    more = ", ioconfig.yaml, hovernet_lite.py" if architecture == "lite" else ", ioconfig.yaml"
    side = ARCHITECTURES[architecture].input_size
    return _SCRIPT.format(side=side, more=more, version=__version__, import_line=import_line, make=make)


def lite_class() -> str:
    """The class `HoVerNetLite` as one file that needs torch and tiatoolbox alone."""
    from stqp.training import lite

    folder = Path(lite.__file__).parent
    imports: dict[str, None] = {}
    body: list[str] = []
    for path in (folder / "lite.py", folder / "tiatoolbox_lite.py"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        statements = ast.parse(text).body
        for number, node in enumerate(statements):
            source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stqp")):
                    imports[source] = None
            elif isinstance(node, ast.Expr):
                if number:  # the text under a constant
                    body[-1] += "\n" + source
            else:
                body.append(source)
    head = (
        '"""`lite`, a narrow HoVer-Net, as a class that TIAToolbox runs.\n\n'
        f"Needs torch and tiatoolbox. Written by stqp {__version__} (GPL-3.0-or-later), which it does not need.\n"
        '"""\n'
    )
    return head + "\n" + "\n".join(imports) + "\n\n" + "\n\n\n".join(body) + "\n"


def resolution_note(mpp: float) -> str | None:
    """What to say of a network of `mpp` µm/px in TIAToolbox; None where that finds what stqp finds."""
    if Sizes.at(mpp) == Sizes():
        return None
    return (
        f"TIAToolbox's post-processing is made for {MPP:g} µm/px; at the network's {mpp:g} it loses nuclei that stqp "
        "finds"
    )
