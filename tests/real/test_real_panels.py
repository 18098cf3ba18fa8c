"""Typing on made-up slides of 10x's real panels, by expression that the method does not assume."""

import warnings

import numpy as np
import pytest
from celltyping.panels import panel_slide, scores

from stqp.celltyping.confidence import reliability_of
from stqp.celltyping.markers import MarkerTable
from stqp.celltyping.methods import type_cells

PANELS = ("hBreast", "hColon", "hLung", "hSkin", "hMulti")


def panel(real_data, name):
    path = real_data / "panels" / f"{name}.csv"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="module")
def typed(real_data):
    """Two slides of each panel, typed."""
    result = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in PANELS:
            for seed in (100, 101):
                made = panel_slide(panel(real_data, name), seed, cells=2_500)
                result.append((name, made, type_cells(made, seed=seed)))
    return result


def test_classes_on_other_panels(typed, capsys):
    found = [scores(made.obs["truth"], t.classes, made.obs["doublet"]) for _, made, t in typed]
    with capsys.disabled():
        for (name, _, _), s in zip(typed, found, strict=True):
            print(f"\n{name}: " + ", ".join(f"{k} {v:.3f}" for k, v in s.items()), end="")
    assert np.mean([s["macro_f1"] for s in found]) >= 0.93
    assert np.mean([s["typed"] for s in found]) >= 0.95
    assert np.mean([s["right"] for s in found]) >= 0.97  # of the cells that got a class


def test_confidence_holds_where_the_truth_is_not_the_models(typed):
    """The calibration draws from the fitted mixture; these slides do not."""
    confidence = np.concatenate([t.confidence[t.classes != "Unknown"] for _, _, t in typed])
    right = np.concatenate(
        [
            (np.where(t.classes == "Neoplastic", "Epithelial", t.classes) == made.obs["truth"].to_numpy(object))[
                t.classes != "Unknown"
            ]
            for _, made, t in typed
        ]
    ).astype(float)
    rows, error = reliability_of(confidence, right)
    assert error < 0.05
    sure, unsure = right[confidence >= 0.95].mean(), right[confidence < 0.8]
    assert sure > 0.98 and (len(unsure) < 100 or unsure.mean() < sure)  # what is doubted is wrong more often
    assert rows[-1]["cells"] > 0.5 * len(right)


def test_mouse_genes_are_typed_as_human_ones(real_data):
    path = panel(real_data, "hMulti")
    human, mouse = (panel_slide(path, 102, cells=1_500, mouse=m) for m in (False, True))
    assert (mouse.var_names != human.var_names).mean() > 0.9  # a few human genes have no orthologue
    by_human, by_mouse = type_cells(human), type_cells(mouse)
    assert (by_human.classes == by_mouse.classes).mean() > 0.95


def test_the_paper_beside_it(typed, real_data):
    path = real_data / "markers" / "panglaodb_markers.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    table = MarkerTable.read(path)
    ours = np.mean([scores(made.obs["truth"], t.classes)["macro_f1"] for _, made, t in typed])
    theirs = np.mean(
        [scores(made.obs["truth"], type_cells(made, "paper", table).classes)["macro_f1"] for _, made, _ in typed]
    )
    assert ours > theirs
