"""Several runs in one call."""

import json

import pytest
from click.testing import CliRunner
from stqp_cli.main import cli

from stqp.errors import InputError
from stqp.importing.manifest import import_manifest, read_manifest
from stqp.qupath.project import QuPathProject
from stqp.synthetic import make_sample


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return folder, [make_sample(folder / name, seed=seed, size=(700, 600)) for seed, name in ((1, "a"), (2, "b"))]


def write_csv(folder, samples, **more):
    path = folder / "runs.csv"
    rows = [",".join(["outs", "he", "alignment", "labels", "class_map", "name", *more])]
    for sample, name in zip(samples, "AB", strict=True):
        paths = [sample.outs, sample.he, sample.alignment, sample.labels, sample.class_map]
        rows.append(",".join([*(p.relative_to(folder).as_posix() for p in paths), name, *more.values()]))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def test_two_runs_into_one_project(two, tmp_path):
    folder, samples = two
    manifest, said = write_csv(folder, samples, min_transcripts="5"), []
    records, failed = import_manifest(manifest, tmp_path / "p", {"qc": False}, progress=lambda *step: said.append(step))
    assert [s[0] for s in said] == [*range(6), *range(5, 11)] and {s[1] for s in said} == {10}
    assert said[6][2].startswith("2 of 2: reading")
    assert not failed and [r.results["sample"] for r in records] == ["A", "B"]
    assert [r.arguments["min_transcripts"] for r in records] == [5, 5] and records[0].arguments["qc"] is False
    with QuPathProject.open(tmp_path / "p") as project:
        assert [len(e.read_objects()) for e in project.entries] == [r.counts["nuclei written"] for r in records]


def test_toml_with_values_for_all(two, tmp_path):
    folder, samples = two
    path = folder / "runs.toml"
    runs = [
        f'[[run]]\nouts = "{s.outs.relative_to(folder).as_posix()}"\nhe = "{s.he.relative_to(folder).as_posix()}"\n'
        f'alignment = "{s.alignment.relative_to(folder).as_posix()}"\n'
        for s in samples
    ]
    path.write_text('as = "cells"\nqc = false\n' + runs[0] + 'name = "first"\n' + runs[1] + "qc = true\n")
    rows = read_manifest(path)
    assert [r["as_kind"] for r in rows] == ["cells", "cells"] and [r["qc"] for r in rows] == [False, True]
    assert rows[0]["outs"] == samples[0].outs and rows[0]["alignment"].is_file()


def test_one_that_fails_stops_no_other(two, tmp_path):
    folder, samples = two
    path = write_csv(folder, samples)
    path.write_text(path.read_text().replace("A\n", "A\nnowhere,x.tif,identity,,,N\n", 1))
    done = CliRunner().invoke(
        cli, ["import-xenium", "--manifest", str(path), "--project", str(tmp_path / "p"), "--no-qc", "--json"]
    )
    content = json.loads(done.stdout)
    assert [r["results"]["sample"] for r in content["runs"]] == ["A", "B"]
    assert [f["outs"] for f in content["failed"]] == [str(folder / "nowhere")]
    assert isinstance(done.exception, InputError) and "1 of 3 runs" in str(done.exception)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "", "names no run"),
        ("m.csv", "outs,he\na,b\n", "run 1 of .* lacks alignment"),
        ("m.csv", "outs,he,alignment,colour\na,b,c,d\n", "'colour', which is no argument"),
        ("m.csv", "outs,he,alignment,min_area\na,b,c,big\n", "'big' for min_area; expected a number"),
        ("m.csv", "outs,he,alignment,qc\na,b,c,perhaps\n", "expected true or false"),
        ("m.toml", "[[run]]\nouts = ", "cannot be read"),
        ("m.toml", "run = 3", "cannot be read"),
    ],
)
def test_manifests_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / name)


def test_what_does_not_go_together(tmp_path):
    for arguments in (["outs"], ["--manifest", "m.csv", "outs"], ["--manifest", "m.csv", "--he", "x.tif"]):
        done = CliRunner().invoke(cli, ["import-xenium", "--project", "p", *arguments])
        assert done.exit_code == 2, done.output
