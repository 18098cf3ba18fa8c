"""Layouts of the field's data sets, tables and projects give what plain maps give; bad ones say what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import shapely
from perfect_maps import CLASSES, grid_of_nuclei
from PIL import Image
from scipy.io import savemat

from stqp.errors import InputError
from stqp.evaluation.evaluate import evaluate, evaluate_maps
from stqp.evaluation.map_files import MapFolder, PanNuke
from stqp.evaluation.nuclei import map_names
from stqp.evaluation.options import Options, open_source
from stqp.evaluation.summary import summary
from stqp.polygonise import polygonise
from stqp.qupath.objects import PathObjects
from stqp.qupath.project import QuPathProject
from stqp.slides import open_slide

NAMES = dict(enumerate(CLASSES, start=1))
IMAGES = {f"image{seed}": grid_of_nuclei(120, 5, seed) for seed in (1, 2)}


def types_of(inst):
    return np.arange(inst.max()) % 3 + 1


def moved(inst):
    """A prediction: two px aside, a few lost, some of another class."""
    pred = np.zeros_like(inst)
    pred[2:] = inst[:-2]
    pred[np.isin(pred, [3, 8])] = 0
    types = types_of(inst)
    types[:5] = types[:5] % 3 + 1
    present = np.unique(pred)[1:]
    return pred, present, types[present - 1]


def write_npz(folder, which="true", **more):
    folder.mkdir(parents=True, exist_ok=True)
    for name, inst in IMAGES.items():
        ids, types = np.unique(inst)[1:], types_of(inst)
        if which == "pred":
            inst, ids, types = moved(inst)
        np.savez(folder / f"{name}.npz", inst=inst, ids=ids, types=types, **more)
    (folder / "classes.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("maps")
    return write_npz(base / "true"), write_npz(base / "pred", "pred")


@pytest.fixture(scope="module")
def expected(folders):
    return evaluate_maps(*folders, bootstrap=0)


def scored(true, pred, **options):
    return summary(evaluate(true, {"pred": pred}, Options(bootstrap=0, **options)))


def same(found, expected, without=()):
    assert found["classes"] == expected["classes"]
    for key, value in expected["pooled"].items():
        if key != "per_class" and key not in without:
            assert found["pooled"][key] == pytest.approx(value, nan_ok=True), key
    for name, values in expected["pooled"]["per_class"].items():
        for key, value in values.items():
            if key not in without:
                assert found["pooled"]["per_class"][name][key] == pytest.approx(value, nan_ok=True), key


def test_the_prediction_is_neither_perfect_nor_hopeless(expected):
    assert 0.5 < expected["pooled"]["pq"] < 0.95 and 0.5 < expected["pooled"]["type_f1_macro"] < 0.95


def test_mat_files_of_consep_and_kumar(folders, expected, tmp_path):
    labels, images = tmp_path / "Test" / "Labels", tmp_path / "Test" / "Images"
    for folder in (labels, images):
        folder.mkdir(parents=True)
    for name, inst in IMAGES.items():
        savemat(labels / f"{name}.mat", {"inst_map": inst.astype(float), "inst_type": types_of(inst)[:, None]})
        Image.fromarray(np.full((120, 120, 3), 200, np.uint8)).save(images / f"{name}.png")
    (labels / "classes.json").write_text(json.dumps(NAMES))
    source = open_source(str(tmp_path / "Test"))
    assert source.read("image1").image == images / "image1.png"
    same(scored(source, MapFolder(folders[1])), expected)
    for name, inst in IMAGES.items():  # a map of types in place of a list
        types = np.concatenate([[0], types_of(inst)])[inst]
        savemat(labels / f"{name}.mat", {"inst_map": inst, "type_map": types})
    same(scored(source, MapFolder(folders[1])), expected)


def test_pictures_of_ids(folders, expected, tmp_path):
    import tifffile

    (tmp_path / "png").mkdir()
    (tmp_path / "tif").mkdir()
    for name, inst in IMAGES.items():
        Image.fromarray(moved(inst)[0].astype(np.uint16)).save(tmp_path / "png" / f"{name}.png")
        tifffile.imwrite(tmp_path / "tif" / f"{name}.tif", moved(inst)[0].astype(np.int32))
    for kind in ("png", "tif"):
        found = scored(MapFolder(folders[0]), MapFolder(tmp_path / kind))
        for key in ("dice", "aji", "pq", "f_d", "boundary_error_um"):
            assert found["pooled"][key] == pytest.approx(expected["pooled"][key])
        assert np.isnan(found["pooled"]["type_f1_macro"])  # no classes: nothing said, nothing wrong


def test_pannuke_arrays(expected, tmp_path):
    folder = tmp_path / "fold3"
    folder.mkdir()
    sides = {}
    for which in ("true", "pred"):
        masks = np.zeros((2, 120, 120, 6))
        for i, inst in enumerate(IMAGES.values()):
            ids, types = np.unique(inst)[1:], types_of(inst)
            if which == "pred":
                inst, ids, types = moved(inst)
            for label, kind in zip(ids, types, strict=True):
                masks[i, ..., kind - 1][inst == label] = label
        masks[..., 5] = (masks[..., :5] == 0).all(-1)
        (folder / which).mkdir()
        np.save(folder / which / "masks.npy", masks)
        np.save(folder / which / "types.npy", np.array(["Colon", "Breast"]))
        np.save(folder / which / "images.npy", np.full((2, 120, 120, 3), 200.0))
        sides[which] = open_source(str(folder / which))
    assert isinstance(sides["true"], PanNuke)
    found = scored(sides["true"], sides["pred"])
    same(found, expected)
    assert set(found["groups"]) == {"Breast", "Colon"} and found["groups"]["Colon"]["images"] == 1
    assert sides["true"].read("00000").pixels.dtype == np.uint8
    with pytest.raises(InputError, match=r"several masks\.npy of one fold"):
        open_source(str(folder))
    np.save(folder / "true" / "types.npy", np.array(["Colon"]))
    with pytest.raises(InputError, match="has 2 images and"):
        open_source(str(folder / "true"))


def frames(which):
    rows = []
    for name, inst in IMAGES.items():
        ids, types = np.unique(inst)[1:], types_of(inst)
        if which == "pred":
            inst, ids, types = moved(inst)
        polygons, present = polygonise(inst)
        shapes = polygons.to_shapely()
        for shape, label in zip(shapes, present, strict=True):
            rows.append((name, NAMES[types[np.searchsorted(ids, label)]], shape))
    return pd.DataFrame(rows, columns=["image", "class", "geometry"])


def test_tables_give_what_maps_give(expected, tmp_path):
    for which in ("true", "pred"):
        frame = frames(which)
        frame.assign(geometry=shapely.to_wkt(frame["geometry"].to_numpy(), -1)).to_csv(
            tmp_path / f"{which}.csv", index=False
        )
        frame.assign(geometry=shapely.to_wkb(frame["geometry"].to_numpy())).to_parquet(tmp_path / f"{which}.parquet")
        (tmp_path / f"{which}_geojson").mkdir()
        for name, part in frame.groupby("image"):
            features = [
                {"type": "Feature", "geometry": json.loads(shapely.to_geojson(g)),
                 "properties": {"objectType": "annotation", "classification": {"name": c}}}
                for c, g in zip(part["class"], part["geometry"], strict=True)
            ]  # fmt: skip
            text = json.dumps({"type": "FeatureCollection", "features": features})
            (tmp_path / f"{which}_geojson" / f"{name}.geojson").write_text(text)
    densities = ("density_true", "density_pred", "area_mm2")  # a table does not know the size of its image
    for kind in (".csv", ".parquet", "_geojson"):
        sides = [open_source(str(tmp_path / f"{which}{kind}")) for which in ("true", "pred")]
        same(scored(*sides), expected, densities)
    same(
        scored(open_source(str(tmp_path / "true.csv")), open_source(str(tmp_path / "pred.parquet"))),
        expected,
        densities,
    )


def test_vertices_and_points(expected, tmp_path):
    for which in ("true", "pred"):
        frame = frames(which)
        rings = [np.array(g.exterior.coords) for g in frame["geometry"]]
        rows = [(i, n, c, x, y) for i, (n, c, r) in enumerate(zip(frame["image"], frame["class"], rings, strict=True))
                for x, y in r]  # fmt: skip
        pd.DataFrame(rows, columns=["nucleus_id", "image", "class", "vertex_x", "vertex_y"]).to_csv(
            tmp_path / f"{which}_v.csv", index=False
        )
        centre = shapely.get_coordinates(shapely.centroid(frame["geometry"].to_numpy()))
        frame.assign(x=centre[:, 0], y=centre[:, 1]).drop(columns="geometry").to_csv(
            tmp_path / f"{which}_p.csv", index=False
        )
    outlined = scored(*(open_source(str(tmp_path / f"{w}_v.csv")) for w in ("true", "pred")))
    same(outlined, expected, ("density_true", "density_pred", "area_mm2"))
    pointed = scored(*(open_source(str(tmp_path / f"{w}_p.csv")) for w in ("true", "pred")))
    for key in ("f_d", "f_c_mean", "type_f1_macro", "type_mcc", "centre_error_um"):
        assert pointed["pooled"][key] == pytest.approx(expected["pooled"][key])
    assert np.isnan(pointed["pooled"]["pq"]) and np.isnan(pointed["pooled"]["dice"])


@pytest.fixture
def project(tmp_path):
    """Truth and prediction of image1 as classes derived from Truth, and as another entry."""
    inst = IMAGES["image1"]
    pred, ids, types = moved(inst)
    Image.fromarray(np.full((120, 120, 3), 220, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((120, 120, 3), 220, np.uint8)).save(tmp_path / "b.png")
    true_shapes, true_ids = polygonise(inst)
    pred_shapes, pred_ids = polygonise(pred)
    true_names = [CLASSES[types_of(inst)[i - 1] - 1] for i in true_ids]
    pred_names = [NAMES[types[np.searchsorted(ids, i)]] for i in pred_ids]
    with QuPathProject.open(tmp_path / "project", "x") as opened:
        for name, mpp in (("a.png", 0.25), ("b.png", 0.25)):
            with open_slide(tmp_path / name, mpp=mpp) as slide:
                entry = opened.add_image(slide)
            entry.add_metadata({"Organ": "colon"})
            found = PathObjects.build(pred_shapes, classes=pred_names)
            if name == "a.png":
                truth = PathObjects.build(true_shapes, classes=[f"Truth: {n}" for n in true_names])
                found = PathObjects.concatenate([truth, replace(found, kind=np.ones(len(found), np.uint8))])
            entry.write_objects(found)
    return tmp_path / "project"


def one_image(folders):
    return summary(evaluate(MapFolder(folders[0]), {"p": MapFolder(folders[1])}, Options(bootstrap=0)))["per_image"]


def test_truth_by_class_and_by_another_entry(project, folders):
    expected = one_image(folders)["image1"]
    truth = open_source(f"{project}::a.png", of_class="Truth")
    for text in (f"{project}::a.png", f"{project}::b.png"):
        pred = open_source(text, predicted=True, other=truth)
        found = scored(truth, pred)
        for key in ("dice", "aji", "pq", "f_d", "type_f1_macro", "type_mcc", "hausdorff95_um"):
            assert found["pooled"][key] == pytest.approx(expected[key]), (text, key)
        assert found["area_mm2"] == pytest.approx(0.03**2)
        assert found["groups"]["colon"]["images"] == 1
        pred.close()
    truth.close()


def test_a_map_against_a_project(project, folders, tmp_path):
    truth = open_source(f"{project}::a.png", of_class="Truth")
    (tmp_path / "maps").mkdir()
    inst, ids, types = moved(IMAGES["image1"])
    np.savez(tmp_path / "maps" / "a.npz", inst=inst, ids=ids, types=types, classes=np.array(CLASSES))
    found = scored(truth, MapFolder(tmp_path / "maps"))
    truth.close()
    expected = one_image(folders)["image1"]
    for key in ("dice", "pq", "f_d", "type_f1_macro", "boundary_error_um"):
        assert found["pooled"][key] == pytest.approx(expected[key])


def test_metadata_group_images(folders, tmp_path):
    (tmp_path / "about.csv").write_text("image,organ\nimage1.png,colon\nimage2.png,lung\n")
    found = scored(MapFolder(folders[0]), MapFolder(folders[1]), metadata=tmp_path / "about.csv")
    assert set(found["groups"]) == {"colon", "lung"}
    assert found["groups"]["lung"]["pooled"]["n_true"] == IMAGES["image2"].max()
    (tmp_path / "about.csv").write_text("image,organ\nimage1.png,colon\n")
    with pytest.raises(InputError, match="no row for the image image2"):
        scored(MapFolder(folders[0]), MapFolder(folders[1]), metadata=tmp_path / "about.csv")
    (tmp_path / "about.csv").write_text("name,organ\nimage1.png,colon\n")
    with pytest.raises(InputError, match="column image"):
        scored(MapFolder(folders[0]), MapFolder(folders[1]), metadata=tmp_path / "about.csv")


def test_class_maps_join_classes(folders):
    joined = {"Neoplastic": "Tumour", "Inflammatory": "Other", "Connective": "Other"}
    found = scored(MapFolder(folders[0]), MapFolder(folders[1]), class_map=joined)
    assert sorted(found["classes"]) == ["Other", "Tumour"]
    side = MapFolder(folders[0]).read("image1")
    mapped, lost = map_names(side, {"Neoplastic": "Tumour", "x": "Inflammatory"})
    assert set(mapped.classes) == {"Tumour", "Inflammatory", "Unknown"}  # a name that is a target stays
    assert lost == (side.classes == "Connective").sum()


# bad input


def write(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "one.npz", **arrays)
    return MapFolder(folder)


INST = IMAGES["image1"]


def test_maps_of_other_sizes(tmp_path):
    a = write(tmp_path / "a", inst=INST)
    with pytest.raises(InputError, match=r"found 120 x 120 px in .*one.npz and 100 x 120 px"):
        scored(a, write(tmp_path / "b", inst=INST[:, :100]))
    half = write(tmp_path / "c", inst=INST[::2, ::2])
    with pytest.raises(InputError, match="same image at other µm per px"):
        scored(a, half)


def test_float_and_rgb_masks(tmp_path):
    write(tmp_path / "a", inst=INST)
    with pytest.raises(InputError, match=r"whole numbers as instance ids in .*one\.npz, found float64 with fractions"):
        write(tmp_path / "b", inst=INST * 0.5).read("one")
    assert len(write(tmp_path / "c", inst=INST.astype(float)).read("one")) == 25  # whole numbers are whole
    for folder in ("rgb", "mask"):
        (tmp_path / folder).mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "rgb" / "one.png")
    with pytest.raises(InputError, match="found a picture of 3 colours"):
        MapFolder(tmp_path / "rgb").read("one")
    Image.fromarray(((INST > 0) * 255).astype(np.uint8)).save(tmp_path / "mask" / "one.png")
    with pytest.raises(InputError, match="found a mask of foreground"):
        MapFolder(tmp_path / "mask").read("one")
    (tmp_path / "mask" / "one.png").write_bytes(b"\x89PNG truncated")
    with pytest.raises(InputError, match="cannot be read as an instance map"):
        MapFolder(tmp_path / "mask").read("one")


def test_class_ids_outside_of_the_taxonomy(tmp_path):
    types = types_of(INST)
    types[4] = 9
    source = write(tmp_path / "a", inst=INST, types=types, classes=np.array(CLASSES))
    with pytest.raises(InputError, match=r"1 Neoplastic, .* in .*one.npz, found 9"):
        source.read("one")


def test_other_um_per_px(tmp_path):
    a, b = write(tmp_path / "a", inst=INST, mpp=0.25), write(tmp_path / "b", inst=INST, mpp=0.5)
    with pytest.raises(InputError, match=r"at one µm per px, found 0\.25 in .* and 0\.5 in"):
        scored(a, b)
    with pytest.raises(InputError, match=r"--mpp says 0\.5"):
        scored(a, a, mpp=0.5)
    assert scored(a, a)["mpp"] == 0.25 and scored(write(tmp_path / "c", inst=INST), a)["mpp"] == 0.25


def test_images_missing_on_one_side(folders, tmp_path):
    pred = tmp_path / "pred"
    write_npz(pred, "pred")
    (pred / "image2.npz").unlink()
    with pytest.raises(InputError, match=r"found none in .*pred for image2"):
        scored(MapFolder(folders[0]), MapFolder(pred))
    with pytest.raises(InputError, match="for image2"):
        scored(MapFolder(pred), MapFolder(folders[0]))
    found = scored(MapFolder(folders[0]), MapFolder(pred), allow_missing=True)
    assert found["per_image"]["image2"]["recall_d"] == 0 and found["per_image"]["image1"]["recall_d"] > 0.9


def test_probabilities(tmp_path):
    types, good = types_of(INST), np.linspace(0, 1, 25)
    truth = write(tmp_path / "t", inst=INST, types=types, classes=np.array(CLASSES))
    found = scored(truth, write(tmp_path / "p", inst=INST, types=types, classes=np.array(CLASSES), probability=good))
    assert found["pooled"]["ece"] == pytest.approx(0.5) and sum(found["calibration"]["n"]) == 25
    good[3] = np.nan
    with pytest.raises(InputError, match=r"a probability for each nucleus in .*one.npz, found NaN for 1 of 25"):
        write(tmp_path / "n", inst=INST, types=types, probability=good).read("one")
    good[3] = 1.5
    with pytest.raises(InputError, match=r"probabilities from 0 to 1 in .*, found 1.5"):
        write(tmp_path / "o", inst=INST, types=types, probability=good).read("one")
    with pytest.raises(InputError, match="expected 25 probabilities"):
        write(tmp_path / "l", inst=INST, types=types, probability=good[:4]).read("one")
    table = frames("true").query("image == 'image1'").assign(probability=0.5)
    table["geometry"] = shapely.to_wkt(table["geometry"].to_numpy(), -1)
    table.loc[table.index[2], "probability"] = np.nan
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match="NaN for 1 of 25"):
        open_source(str(tmp_path / "t.csv")).read("image1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "expected a column geometry"),
        ("image,x,y\na,1,\n", "found NaN or infinity"),
        ("image,geometry\na,POLYGON((0 0\n", "a geometry that is none"),
        ('image,geometry\na,"LINESTRING(0 0,1 1)"\n', "found LineString in row 1"),
        ("image,x,y\n,1,2\na,1,2\n", "1 rows without"),
        ("image,x,y,mpp\na,1,2,0.25\na,1,2,0.5\n", "found 0.25 to 0.5"),
        ("id,vertex_x,vertex_y\n1,0,0\n2,1,1\n1,0,1\n", "behind each other"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    (tmp_path / "one.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        source = open_source(str(tmp_path / "one.csv"))
        source.read(source.images()[0])


def test_broken_files(tmp_path):
    for name, message in (("a.parquet", "cannot be read as a table"), ("a.geojson", "a.geojson")):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match=message):
            open_source(str(tmp_path / name))
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.mat").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as a MATLAB file"):
        open_source(str(tmp_path / "m")).read("a")
    savemat(tmp_path / "m" / "a.mat", {"other": 1})
    with pytest.raises(InputError, match="expected an array 'inst_map'"):
        open_source(str(tmp_path / "m")).read("a")
    (tmp_path / "masks.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as an array"):
        open_source(str(tmp_path / "masks.npy"))
    np.save(tmp_path / "masks.npy", np.zeros((4, 4)))
    with pytest.raises(InputError, match="expected PanNuke's masks"):
        open_source(str(tmp_path / "masks.npy"))
