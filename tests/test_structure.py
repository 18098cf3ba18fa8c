"""The house keeps its order: rooms import from the left of them in the way of the data, never back."""

import ast
import tomllib
from pathlib import Path

import stqp

ROOT = Path(stqp.__file__).parent
GROUND = {
    "cohorts",
    "errors",
    "files",
    "hdf5",
    "devices",
    "locking",
    "taxonomy",
    "pixels",
    "polygonise",
    "polygons",
    "record",
    "shapes",
    "slides",
    "slides_tiatoolbox",
    "tissue",
}
# the way of the data; a room may import from the rooms before it
WAY = ["sample", "alignment", "sources", "celltyping", "qupath", "importing", "separability", "patches", "training"]
WAY += ["inference", "evaluation", "report", "synthetic", "experiments", "demo"]
EXCEPTIONS = {
    # a network in training is scored as its predictions will be: by nuclei, with the same post-processing
    ("training/validation.py", "inference.postprocess"),
    ("training/validation.py", "evaluation.counts"),
    ("training/validation.py", "evaluation.overlap"),
    ("training/validation.py", "evaluation.scores"),
    # the report of a typing takes its place together with what it reports, or not at all
    ("importing/typing.py", "report.typing"),
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(a.name for a in node.names)
    return found


def rooms():
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        yield path, relative.parts[0].removesuffix(".py")


def test_every_room_imports_only_what_it_may():
    wrong = []
    for path, room in rooms():
        for module in imports(path):
            parts = module.split(".")
            if parts[0] == "stqp_cli" or parts[0] == "cli":
                wrong.append(f"{path.name} imports the command line")
            if parts[0] != "stqp" or len(parts) < 2:
                continue
            target = parts[1]
            if target in GROUND or target == room or target.startswith("__"):
                continue
            name = path.relative_to(ROOT).as_posix()
            if (name, ".".join(parts[1:])) in EXCEPTIONS:
                continue
            if room in GROUND or WAY.index(target) > WAY.index(room):
                wrong.append(f"{name} imports {module}")
    assert not wrong, wrong


def test_the_library_neither_prints_nor_exits():
    wrong = []
    for path, _ in rooms():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in {"print", "sys.exit", "exit", "quit", "os._exit"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not wrong, wrong


def test_modules_stay_small():
    long = {}
    for path, _ in rooms():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            long[str(path.relative_to(ROOT))] = lines
    assert not long, long


def test_every_package_is_installed():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    listed = {*project["tool"]["setuptools"]["packages"]} - {"stqp_cli", "stqp.qupath_scripts"}
    house = Path(__file__).parents[1] / "stqp"
    there = {".".join(p.parent.relative_to(house.parent).parts) for p in house.rglob("__init__.py")}
    assert listed == there
    assert {p.parent for p in house.rglob("*.py")} == {house.parent / n.replace(".", "/") for n in there}
