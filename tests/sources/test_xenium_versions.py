"""Every version that the generator writes, held to its truth."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from stqp.record import RunRecord
from stqp.sources.building import read_xenium_sample
from stqp.sources.xenium import XeniumBundle
from stqp.sources.xenium_matrix import read_matrix
from stqp.sources.xenium_versions import CONTROLS, FEATURE_TYPES, XeniumVersion, feature_type, versions_document
from stqp.synthetic import make_sample
from stqp.synthetic.versions import MADE

SIZE = (401, 357)


@pytest.fixture(scope="module", params=sorted(MADE))
def made(request, tmp_path_factory):
    return request.param, make_sample(tmp_path_factory.mktemp("made"), seed=11, size=SIZE, version=request.param)


def read(sample, **options):
    record = RunRecord("test", {})
    return read_xenium_sample(sample.outs, sample.he, sample.alignment, record=record, **options), record


def held_to_truth(sample):
    result, record = read(sample)
    truth = np.load(sample.outlines)
    assert np.abs(result.nuclei.polygons.coords - truth["coords"]).max() < 0.02
    assert (result.nuclei.polygons.ring_offsets == truth["ring_offsets"]).all()
    assert result.nuclei.cell_id.tolist() == truth["cell_id"].tolist()
    assert not record.skipped
    return result, truth


def test_outlines_ids_and_several_nuclei_are_those_of_the_truth(made):
    version, sample = made
    result, truth = held_to_truth(sample)
    ids, number = np.unique(truth["cell_id"], return_counts=True)
    expected = dict.fromkeys(result.cells.ids.tolist(), 0) | dict(zip(ids.tolist(), number.tolist(), strict=True))
    assert dict(zip(result.cells.ids.tolist(), result.cells.n_nuclei.tolist(), strict=True)) == expected
    one_each = version.startswith("1.")
    assert set(expected.values()) == ({1} if one_each else {0, 1, 2})
    assert len(result.cells) == sample.n_cells and len(result.nuclei) == sample.n_nuclei
    if version == "1.0":
        assert result.cells.ids.tolist() == [str(i + 1) for i in range(sample.n_cells)]


@pytest.mark.parametrize(
    ("rotation", "mirrored", "mpp"), [(0.0, False, 0.25), (-89.5, True, 0.274), (37.0, False, 0.5), (180.0, True, 0.2)]
)
def test_turned_mirrored_and_scaled_slides(tmp_path, rotation, mirrored, mpp):
    sample = make_sample(tmp_path, seed=3, size=SIZE, mpp=mpp, rotation=rotation, mirrored=mirrored, version="3.0")
    held_to_truth(sample)
    det = np.linalg.det(np.loadtxt(sample.alignment, delimiter=",")[:2, :2])
    assert (det < 0) == mirrored


def test_masks_are_the_same_nuclei(made):
    _, sample = made
    polygons, _ = read(sample)
    masks, record = read(sample, nuclei_source="masks")
    assert masks.nuclei.cell_id.tolist() == polygons.nuclei.cell_id.tolist()
    assert masks.nuclei.position.tolist() == polygons.nuclei.position.tolist()
    assert np.abs(masks.nuclei.polygons.centroid() - polygons.nuclei.polygons.centroid()).max() < 0.5
    assert np.median(masks.nuclei.area / polygons.nuclei.area) == pytest.approx(1, abs=0.01)
    assert record.counts["nuclei outlined around the pixels of their masks"] == sample.n_nuclei
    # corners lie on the grid of the morphology image, not on the centres of its pixels
    pixels = masks.nuclei.polygons.transform(masks.alignment).coords
    assert np.abs(pixels - np.rint(pixels)).max() < 1e-6


def test_three_kinds_of_matrix_are_the_same_numbers(made):
    _, sample = made
    outs = sample.outs
    h5, mtx, zarr = (read_matrix(outs / f"cell_feature_matrix{end}") for end in (".h5", "", ".zarr.zip"))
    for other in (mtx, zarr):
        same = slice(0, len(h5.names))
        assert other.barcodes.to_pylist() == h5.barcodes.to_pylist()
        assert other.kinds[same].tolist() == h5.kinds.tolist() and other.names[same].tolist() == h5.names.tolist()
        counts = other.counts[:, same]
        assert (counts != h5.counts).nnz == 0
        np.testing.assert_array_equal(counts.indices, h5.counts.indices)
        np.testing.assert_array_equal(counts.indptr, h5.counts.indptr)
    assert zarr.kinds[-1] == "aggregate"


def test_matrix_is_taken_from_what_is_there(made, tmp_path):
    _, sample = made
    outs = shutil.copytree(sample.outs, tmp_path / "outs")
    ids = XeniumBundle.open(outs).read_cells().ids
    expected = XeniumBundle.open(outs).read_counts(ids)
    for name in ("cell_feature_matrix.h5", "cell_feature_matrix"):
        path = outs / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
        counts = XeniumBundle.open(outs).read_counts(ids)
        assert sparse.issparse(counts.matrix) and (counts.matrix != expected.matrix).nnz == 0
        assert counts.genes.tolist() == expected.genes.tolist()
        assert {k: v.tolist() for k, v in counts.control_kinds.items()} == {
            k: v.tolist() for k, v in expected.control_kinds.items()
        }
    scaled = not len(expected.protein_names) or not counts.notes
    assert scaled and np.array_equal(counts.proteins, expected.proteins)


def test_controls_by_type_and_proteins(made):
    import h5py

    version, sample = made
    result, _ = read(sample)
    with h5py.File(sample.outs / "cell_feature_matrix.h5") as file:
        kinds = file["matrix/features/feature_type"][:].astype(str)
        shape = file["matrix/shape"][:][::-1]
        arrays = [file[f"matrix/{k}"][:] for k in ("data", "indices", "indptr")]
    dense = sparse.csr_matrix(tuple(arrays), shape=shape).toarray()
    renamed = np.where(kinds == "Blank Codeword", "Unassigned Codeword", kinds)
    assert ("Blank Codeword" in kinds) == (version == "1.0")
    for kind in CONTROLS:
        column = result.extra["control_kinds"].get(kind)
        assert (column is not None) == (kind in renamed)
        if column is not None:
            assert column.tolist() == dense[:, renamed == kind].sum(axis=1).tolist()
    assert result.cells.controls.tolist() == dense[:, np.isin(renamed, CONTROLS)].sum(axis=1).tolist()
    data = result.expression()
    assert (data.obs["negative_control_probe_counts"] == result.extra["control_kinds"]["Negative Control Probe"]).all()
    proteins = dense[:, kinds == "Protein Expression"]
    assert proteins.shape[1] == (5 if version == "4.0" else 0)
    if proteins.shape[1]:
        np.testing.assert_allclose(data.obsm["protein"], proteins / 100, rtol=1e-6)
        assert data.uns["protein"].tolist() == result.extra["protein_names"].tolist()
    else:
        assert "protein" not in data.obsm


def test_morphology_image_in_its_layout(made):
    import tifffile

    version, sample = made
    image = XeniumBundle.open(sample.outs).morphology_image()
    name = {"1.0": "morphology_mip.ome.tif", "1.3": "morphology_focus.ome.tif", "1.9": "morphology_focus.ome.tif"}
    name["4.0"] = "morphology_focus/ch0000_dapi.ome.tif"
    assert image.path == sample.outs / name.get(version, "morphology_focus/morphology_focus_0000.ome.tif")
    assert tifffile.imread(image.path).shape == image.size[::-1]
    # nuclei are bright in it
    result, _ = read(sample)
    x, y = result.nuclei.polygons.transform(result.alignment).centroid().astype(int).T
    assert np.median(tifffile.imread(image.path)[y, x]) > 1000


def test_version_of_a_later_segmentation_counts(made):
    version, sample = made
    bundle = XeniumBundle.open(sample.outs)
    expected = {"ranger": "xenium-3.1.0.5"}.get(version, MADE[version].software)
    assert bundle.version == expected and not bundle.newer_than_known and bundle.lacks == []


def test_newer_version_than_known_warns_and_goes_on(tmp_path):
    sample = make_sample(tmp_path, seed=3, size=SIZE, version="4.0")
    path = sample.outs / "experiment.xenium"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"analysis_sw_version": "xenium-5.2.0.1"}))
    result, record = read(sample)
    assert len(result.nuclei) == sample.n_nuclei
    assert any("xenium-5.2.0.1, newer than any" in line for line in record.warnings)


def test_questions_to_a_version():
    def version(text, **more):
        return XeniumVersion({"analysis_sw_version": text, **more})

    assert version("Xenium-1.0.1").one_nucleus_each and version("xenium-1.9.2.0").one_nucleus_each
    assert not version("xenium-2.0.0.6").one_nucleus_each and not XeniumVersion({}).one_nucleus_each
    assert version("xenium-1.9.2.0", xenium_ranger={"version": "xenium-3.1.0.5"}).numbers == (3, 1, 0, 5)
    assert version("xenium-1.9.2.0", xenium_ranger="odd").numbers == (1, 9, 2, 0)
    assert version("xenium-5.0").newer_than_known and not XeniumVersion({}).newer_than_known
    assert (
        feature_type("negative_control_probe") == "Negative Control Probe" and feature_type("New Thing") == "New Thing"
    )
    assert all(feature_type(kind) == kind for kind in FEATURE_TYPES if kind[0].isupper())


def test_documents_are_made_from_the_constants():
    path = Path(__file__).parents[2] / "docs" / "xenium_versions.md"
    assert path.read_text(encoding="utf-8") == versions_document(), "run python docs/make_xenium_versions.py"
