"""PanNuke's folds as data of a study."""

import numpy as np
import pytest

from stqp.errors import InputError
from stqp.evaluation.map_files import PanNuke
from stqp.evaluation.options import open_source
from stqp.experiments.images import images_of
from stqp.experiments.manifest import Dataset


def test_folds_of_pannuke_as_they_are_published(tmp_path):
    for fold, tissues in (("1", ["Colon", "Breast"]), ("2", ["Breast", "Lung"])):
        masks = np.zeros((2, 64, 64, 6))
        masks[0, 5:15, 5:15, 1], masks[0, 30:40, 30:40, 4] = 3, 9
        masks[1, 20:30, 20:30, 0] = int(fold)
        images = tmp_path / f"Fold {fold}" / "images" / f"fold{fold}"
        images.mkdir(parents=True)
        np.save(images / "images.npy", np.full((2, 64, 64, 3), 200.0))
        np.save(images / "types.npy", np.array(tissues))
        folder = tmp_path / f"Fold {fold}" / "masks" / f"fold{fold}"
        folder.mkdir(parents=True)
        np.save(folder / "masks.npy", masks)
    source = open_source(str(tmp_path))
    assert source.images() == ["fold1_00000", "fold1_00001", "fold2_00000", "fold2_00001"]
    first = source.read("fold1_00000")
    assert first.classes.tolist() == ["Inflammatory", "Epithelial"]
    assert dict(first.about) == {"fold": "1", "tissue": "Colon", "organ": "Colon"}
    assert (first.inst[5:15, 5:15] == 1).all() and (first.inst > 0).sum() == 200
    data = Dataset("p", "pannuke", tmp_path, where=("fold=2", "tissue=Lung", "tissue=Colon"))
    (image,) = images_of(data, tmp_path / "out")
    assert image.name == "fold2_00001" and image.path.is_file()
    with pytest.raises(InputError, match="no image that is tissue=Skin"):
        images_of(Dataset("p", "pannuke", tmp_path, where=("tissue=Skin",)), tmp_path / "out")
    one = open_source(str(tmp_path / "Fold 2"))
    assert isinstance(one, PanNuke) and one.images() == ["00000", "00001"]
    assert one.read("00001").classes.tolist() == ["Neoplastic"] and one.read("00001").pixels is not None
