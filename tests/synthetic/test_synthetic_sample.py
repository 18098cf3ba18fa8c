import hashlib

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from support import best_iou

from stqp.errors import UsageError
from stqp.polygons import Polygons
from stqp.slides import open_slide
from stqp.synthetic import make_sample
from stqp.synthetic.bundle import cell_id
from stqp.synthetic.counts import FINE_TYPES
from stqp.synthetic.versions import MADE
from stqp.taxonomy import VISUAL_CLASSES, read_class_map


def outlines(sample, stem="nucleus_boundaries"):
    """Polygons in H&E px, by a plain loop."""
    table = pq.read_table(sample.outs / f"{stem}.parquet").to_pydict()
    rings = {}
    for x, y, label in zip(table["vertex_x"], table["vertex_y"], table["label_id"], strict=True):
        rings.setdefault(label, []).append((x, y))
    matrix = np.loadtxt(sample.alignment, delimiter=",")
    xy = np.concatenate([np.array(r) for r in rings.values()])
    polygons = Polygons.from_rings(xy, np.r_[0, np.cumsum([len(r) for r in rings.values()])])
    return polygons.transform(np.linalg.inv(matrix) @ np.diag([1 / 0.2125, 1 / 0.2125, 1]))


def test_outlines_lie_on_the_instances_to_the_pixel(sample):
    inst = np.load(sample.instances)["inst"]
    assert inst.shape == sample.size[::-1]
    polygons = outlines(sample)
    assert len(polygons) == sample.n_nuclei
    iou = best_iou(polygons, inst)
    assert np.median(iou) > 0.99
    assert (iou > 0.8).mean() > 0.99
    assert np.median(best_iou(polygons.shift(0.5, 0.5), inst)) < 0.97  # the measure notices half a pixel


def test_slide_is_a_pyramid_with_its_pixel_size(sample):
    with open_slide(sample.he) as slide:
        assert (slide.width, slide.height) == sample.size
        assert slide.mpp == pytest.approx(sample.mpp)
        assert len(slide.downsamples) == 2


def test_nuclei_look_like_their_classes(sample):
    truth = pq.read_table(sample.nuclei).to_pandas()
    data = np.load(sample.instances)
    inst, types = data["inst"], data["types"]
    with open_slide(sample.he) as slide:
        image = slide.read_level(0, 0, 0, slide.width, slide.height)
    area = np.bincount(inst.ravel())[1:] * sample.mpp**2
    dark = 255 - np.bincount(inst.ravel(), image[..., 0].ravel())[1:] / np.bincount(inst.ravel())[1:]
    names = {c.id: c.name for c in VISUAL_CLASSES}
    assert [names[t] for t in types] == truth["class"].tolist()
    by = {name: (np.median(area[types == i]), np.median(dark[types == i])) for i, name in names.items()}
    assert by["Neoplastic"][0] > 1.4 * by["Epithelial"][0] > 1.4 * by["Inflammatory"][0] > by["Dead"][0]
    assert by["Dead"][1] > by["Inflammatory"][1] > by["Epithelial"][1] > by["Neoplastic"][1]
    background = 255 - np.median(image[..., 0][inst == 0])
    assert background < min(darkness for _, darkness in by.values()) - 40


def test_bundle_holds_what_is_hard_about_xenium(sample):
    cells = pq.read_table(sample.outs / "cells.parquet").to_pandas()
    nuclei = pq.read_table(sample.outs / "nucleus_boundaries.parquet").to_pandas()
    assert len(cells) == sample.n_cells
    per_cell = nuclei.groupby("cell_id")["label_id"].nunique()
    assert (per_cell == 2).sum() >= 2
    assert (~cells.cell_id.isin(per_cell.index)).sum() >= 3
    assert cells.nucleus_area.isna().sum() == (cells.nucleus_count == 0).sum() >= 3
    first = nuclei.groupby("label_id").first()
    last = nuclei.groupby("label_id").last()
    assert (first.vertex_x == last.vertex_x).all() and (nuclei.groupby("label_id").size() == 25).all()
    with h5py.File(sample.outs / "cell_feature_matrix.h5") as file:
        kinds = file["matrix/features/feature_type"][:].astype(str)
        assert len(file["matrix/indptr"][:]) == sample.n_cells + 1
        assert file["matrix/data"][:].sum() == cells.total_counts.sum()
    assert (kinds == "Gene Expression").sum() > 80 and len(set(kinds)) == 4


def test_markers_tell_the_fine_types(sample):
    from scipy import sparse

    truth = pq.read_table(sample.nuclei).to_pandas().drop_duplicates("cell_id").set_index("cell_id")
    with h5py.File(sample.outs / "cell_feature_matrix.h5") as file:
        group = file["matrix"]
        shape = group["shape"][:]
        counts = sparse.csr_matrix(
            (group["data"][:], group["indices"][:], group["indptr"][:]), shape=(shape[1], shape[0])
        )
        names = group["features/name"][:].astype(str)
        ids = group["barcodes"][:].astype(str)
    frame = pd.DataFrame(counts.toarray(), index=ids, columns=names).loc[truth.index]
    mean = frame.groupby(truth.fine).mean()
    for kind, (_, _, markers) in FINE_TYPES.items():
        if kind in mean.index and (truth.fine == kind).sum() > 10:
            score = mean.loc[kind, list(markers)].sum() / mean.loc[kind].sum()
            assert score > 1.5 * mean.drop(kind)[list(markers)].sum(axis=1).mean() / mean.drop(kind).sum(axis=1).mean()


def test_labels_and_class_map_give_the_truth(sample):
    truth = pq.read_table(sample.nuclei).to_pandas()
    mapping = read_class_map(sample.class_map)
    labels = pd.read_csv(sample.labels).set_index("cell_id")["label"]
    given = truth.cell_id.map(labels)
    named = given != "unassigned"
    assert 0.95 < named.mean() < 1
    assert (given[named] == truth.fine[named]).all()
    assert (given[named].map(mapping) == truth["class"][named]).all()


def test_same_seed_same_files(tmp_path):
    def digest(sample):
        pixels = open_slide(sample.he).read_level(0, 0, 0, *sample.size).tobytes()  # the TIFF holds a random UUID
        whole = sample.nuclei.read_bytes() + sample.labels.read_bytes()
        whole += (sample.outs / "nucleus_boundaries.parquet").read_bytes()
        return hashlib.sha256(pixels + whole).hexdigest()

    samples = [make_sample(tmp_path / str(i), seed=s, size=(301, 257)) for i, s in enumerate((3, 3, 4))]
    first, again, other = map(digest, samples)
    assert first == again != other


def test_part_of_the_slide_can_lie_outside_of_the_run(tmp_path):
    sample = make_sample(tmp_path, seed=1, size=(800, 600), covered=0.6)
    truth = pq.read_table(sample.nuclei).to_pandas()
    assert 0 < truth.covered.sum() == sample.n_nuclei < len(truth)
    assert truth.he_x[truth.covered].max() < 0.6 * 800 < truth.he_x[~truth.covered].max()
    assert outlines(sample).coords[:, 0].max() < 0.6 * 800
    assert outlines(sample, "cell_boundaries").coords[:, 0].max() < 0.6 * 800 + 0.01


@pytest.mark.parametrize("wrong", [{"size": (100, 400)}, {"covered": 0}, {"mpp": 0}])
def test_impossible_samples_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="256x256"):
        make_sample(tmp_path, **wrong)


def test_default_size_is_full(tmp_path):
    sample = make_sample(tmp_path)
    assert 1500 <= sample.n_nuclei <= 2500


def test_cell_ids_are_written_as_the_instrument_does():
    def slow(number):
        digits = f"{number:08x}"
        return "".join(chr(ord("a") + int(d, 16)) for d in digits) + "-1"

    numbers = np.array([0, 1, 15, 16, 255, 2**31, 2**32 - 1], np.uint32)
    assert cell_id(numbers).tolist() == [slow(int(n)) for n in numbers]


@pytest.fixture(scope="module", params=sorted(MADE))
def made(request, tmp_path_factory):
    return request.param, make_sample(tmp_path_factory.mktemp("made"), seed=7, size=(701, 597), version=request.param)


def table(sample, stem):
    """A table of the bundle as pandas, whatever its ending."""
    path = next(p for end in (".parquet", ".csv.gz") if (p := sample.outs / f"{stem}{end}").is_file())
    return pq.read_table(path).to_pandas() if path.suffix == ".parquet" else pd.read_csv(path)


def test_versions_differ_where_the_instrument_does(made):
    version, sample = made
    names = {p.relative_to(sample.outs).as_posix() for p in sample.outs.rglob("*") if p.is_file()}
    assert ("cells.csv.gz" in names) == (version in ("1.0", "1.9", "3.0"))
    assert ("cells.parquet" in names) == (version != "1.0")
    assert {"cell_feature_matrix.h5", "cell_feature_matrix.zarr.zip", "cell_feature_matrix/matrix.mtx.gz"} <= names
    cells, nuclei = table(sample, "cells"), table(sample, "nucleus_boundaries")
    kind = {"1.0": int, "1.3": bytes}.get(version, str)
    assert isinstance(cells.cell_id.iloc[0].item() if version == "1.0" else cells.cell_id.iloc[0], kind)
    assert ("label_id" in nuclei) == (version in ("2.0", "3.0", "4.0", "ranger"))
    assert ("nucleus_count" in cells) == (not version.startswith("1."))
    assert ("genomic_control_counts" in cells) == (version in ("3.0", "4.0", "ranger"))
    assert ("unassigned_codeword_counts" in cells) == (version != "1.0")
    per_cell = nuclei.groupby("cell_id").size()
    ring = 13 if version.startswith("1.") else 25
    several = (per_cell > ring).sum()
    assert set(per_cell % ring) == {0} and (several >= 3) == (not version.startswith("1."))
    assert (len(per_cell) < len(cells)) == (not version.startswith("1."))
    counts = [c for c in cells.columns if c.endswith("_counts") and c != "total_counts"]
    assert (cells[counts].sum(axis=1) == cells.total_counts).all() or version == "1.0"


def test_masks_hold_the_same_nuclei(made):
    import zarr

    version, sample = made
    store = zarr.storage.ZipStore(sample.outs / "cells.zarr.zip", mode="r")
    root = zarr.open_group(store=store, mode="r")
    assert root.metadata.zarr_format == 2
    mask = root["masks/0"][:]
    assert sorted(np.unique(mask[mask > 0])) == list(range(1, sample.n_nuclei + 1))
    assert ("polygon_sets" in root) == (not version.startswith("1."))
    assert ("seg_mask_value" in root) == (version in ("1.3", "1.9"))
    assert root["cell_id"].shape == ((sample.n_cells,) if version == "1.0" else (sample.n_cells, 2))
    # a pixel of each nucleus, taken to the H&E, is of that nucleus
    truth = np.load(sample.outlines)
    y, x = np.nonzero(mask)
    matrix = np.linalg.inv(np.loadtxt(sample.alignment, delimiter=","))
    he = (np.column_stack([x + 0.5, y + 0.5, np.ones(len(x))]) @ matrix.T)[:, :2].astype(int)
    inside = ((he >= 0) & (he < sample.size)).all(axis=1)
    there = np.load(sample.instances)["inst"][he[inside, 1], he[inside, 0]]
    assert (there == truth["instance"][mask[y, x][inside] - 1]).mean() > (0.95 if version.startswith("1.") else 0.97)
    store.close()


def test_unknown_versions_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"writes the versions 1\.0, 1\.3"):
        make_sample(tmp_path, size=(300, 300), version="7")
