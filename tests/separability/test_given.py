"""Embeddings and predictions by id, and what is wrong with those that do not fit."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest

from stqp.errors import InputError, UsageError
from stqp.polygons import Polygons
from stqp.qupath.objects import ObjectKind, PathObjects
from stqp.qupath.ownership import stamp
from stqp.qupath.project import QuPathProject
from stqp.separability.given import read_embedding, read_predictions
from stqp.separability.groups import SlideNuclei
from stqp.slides import open_slide

N = 60


@pytest.fixture
def nuclei(tmp_path):
    x, y = np.meshgrid(np.arange(10) * 40 + 30.0, np.arange(6) * 40 + 30.0)
    corners = np.array([[-8, -8], [8, -8], [8, 8], [-8, 8]], float)
    rings = (np.c_[x.ravel(), y.ravel()][:, None] + corners).reshape(-1, 2)
    ids = np.array([f"n{i}" for i in range(N)], object)
    cells = np.array([f"c{i}" for i in range(N)], object)
    group = np.array(["a", "b"] * (N // 2), object)
    outlines = Polygons.from_rings(rings, np.arange(N + 1) * 4)
    return SlideNuclei("s.png", tmp_path / "s.png", 0.5, outlines, ids, cells, group, group, group, None)


def values(columns=3):
    return np.random.default_rng(0).normal(0, 1, (N, columns))


def test_every_kind_of_file_by_nucleus_or_by_cell(nuclei, tmp_path):
    x, turned = values(), np.random.default_rng(1).permutation(N)
    pd.DataFrame(x[turned], columns=["p", "q", "r"]).assign(id=nuclei.ids[turned]).to_parquet(tmp_path / "a.parquet")
    frame = pd.DataFrame(x[turned], columns=["p", "q", "r"], index=nuclei.cells[turned])
    frame.to_parquet(tmp_path / "b.parquet")
    np.savez(tmp_path / "c.npz", ids=nuclei.cells[turned].astype(str), uni=x[turned])
    adata = anndata.AnnData(np.zeros((N, 1)), obs=pd.DataFrame(index=nuclei.cells[turned].astype(str)))
    adata.obsm["spatial"], adata.obsm["X_uni"] = np.zeros((N, 2)), x[turned]
    adata.write_h5ad(tmp_path / "d.h5ad")
    for name, key in (("a.parquet", None), ("b.parquet", None), ("c.npz", None), ("c.npz", "uni"), ("d.h5ad", None)):
        (found,) = read_embedding(tmp_path / name, key, [nuclei], 0)
        assert np.allclose(found.values, x) and found.names[0] == "embedding 1", name
    some = dataclasses.replace(nuclei, ids=nuclei.ids.copy(), cells=nuclei.cells.copy())
    some.ids[:6], some.cells[:6] = "other", "other"
    (found,) = read_embedding(tmp_path / "a.parquet", None, [some], 0)
    assert np.isnan(found.values[:6]).all() and found.counts["nuclei that the embedding lacks"] == 6


def test_long_embeddings_become_components(nuclei, tmp_path):
    np.savez(tmp_path / "e.npz", ids=nuclei.ids.astype(str), x=values(200))
    (found,) = read_embedding(tmp_path / "e.npz", None, [nuclei], 0)
    (again,) = read_embedding(tmp_path / "e.npz", None, [nuclei], 0)
    assert found.values.shape == (N, 50) and np.array_equal(found.values, again.values)


def test_embeddings_that_do_not_fit(nuclei, tmp_path):
    ids = nuclei.ids.astype(str)
    bad = values()
    bad[3, 1] = np.inf
    files = {
        "strange.npz": {"ids": np.array([f"x{i}" for i in range(N)]), "x": values()},
        "endless.npz": {"ids": ids, "x": bad},
        "two.npz": {"ids": ids, "x": values(), "y": values()},
        "nameless.npz": {"x": values()},
        "short.npz": {"ids": ids[:10], "x": values()},
        "twice.npz": {"ids": np.array(["n1"] * N), "x": values()},
    }
    for name, arrays in files.items():
        np.savez(tmp_path / name, **arrays)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "words.txt").write_text("n1 0.5")
    said = {
        "strange.npz": r"has 0 of the 60 nuclei; expected ids .*found 'x0', expected such as 'n0' or 'c0'",
        "endless.npz": "1 rows with values that are not finite",
        "two.npz": "has the arrays x, y; name one by --embedding-key",
        "nameless.npz": "no array of ids",
        "short.npz": r"10 ids and numbers of the shape \(60, 3\)",
        "twice.npz": "names an id more than once",
        "torn.parquet": "cannot be read",
        "torn.npz": "cannot be read",
        "words.txt": "expected .parquet, .npz or .h5ad",
        "none.npz": "does not exist",
    }
    for name, message in said.items():
        with pytest.raises(InputError, match=message):
            read_embedding(tmp_path / name, None, [nuclei], 0)


def test_predictions_of_a_table(nuclei, tmp_path):
    p = np.random.default_rng(2).dirichlet([1, 1, 1], N)
    pd.DataFrame(p, columns=["A", "B", "C"]).assign(nucleus_id=nuclei.ids).to_parquet(tmp_path / "p.parquet")
    (found,) = read_predictions(tmp_path / "p.parquet", None, [nuclei])
    assert np.allclose(np.exp(found.values), np.maximum(p, 1e-4))
    pd.DataFrame(3 * p).assign(id=nuclei.ids).rename(columns=str).to_parquet(tmp_path / "q.parquet")
    with pytest.raises(InputError, match="no probabilities; expected 0 to 1"):
        read_predictions(tmp_path / "q.parquet", None, [nuclei])


def test_predictions_of_a_project(nuclei, tmp_path):
    import cv2

    cv2.imwrite(str(nuclei.image), np.full((300, 450, 3), 230, np.uint8))
    p = np.random.default_rng(3).dirichlet([1, 1], N)
    order = np.random.default_rng(4).permutation(N)[:-4]  # four were not found
    names = {"Probability: A": p[order, 0], "Probability: B": p[order, 1], "Nucleus: Circularity": p[order, 0]}
    outlines = nuclei.polygons.take(order).shift(1.5, -1)
    with QuPathProject.open(tmp_path / "predicted", "a") as project, open_slide(nuclei.image, 0.5) as slide:
        entry = project.add_image(slide, "s.png")
        entry.write_objects(
            stamp(PathObjects.build(outlines, kind=ObjectKind.DETECTION, measurements=names), "predict:one", "r")
        )
    (found,) = read_predictions(tmp_path / "predicted", None, [nuclei])
    assert found.names == ("Probability: A", "Probability: B")
    assert np.allclose(np.exp(found.values[order]), p[order], atol=1e-6)
    assert found.counts["nuclei that the predictions lack"] == 4
    with pytest.raises(InputError, match="no predictions of two; it has one"):
        read_predictions(tmp_path / "predicted", "two", [nuclei])
    with pytest.raises(InputError, match=r"has no image other\.png"):
        read_predictions(tmp_path / "predicted", None, [dataclasses.replace(nuclei, name="other.png")])
    far = dataclasses.replace(nuclei, polygons=nuclei.polygons.shift(20, 20))
    with pytest.raises(InputError, match="have 0 of its 60 nuclei"):
        read_predictions(tmp_path / "predicted", None, [far])
    with QuPathProject.open(tmp_path / "predicted", "r+") as project:
        (entry,) = project.entries
        more = PathObjects.build(outlines, kind=ObjectKind.DETECTION, measurements=names)
        entry.write_objects(stamp(more, "predict:two", "r"))
    with pytest.raises(UsageError, match="predictions of one, two; name one by --predictions-run"):
        read_predictions(tmp_path / "predicted", None, [nuclei])
    (found,) = read_predictions(tmp_path / "predicted", "two", [nuclei])
    assert np.isfinite(found.values[order]).all()
