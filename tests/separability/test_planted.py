"""A planted truth: two types look the same and the others do not, over several slides."""

import dataclasses

import numpy as np
import pytest
from separability.planted import MPP, planted

from stqp.errors import InputError, UsageError
from stqp.record import RunRecord
from stqp.separability import features
from stqp.separability.analysis import analyse
from stqp.separability.features import Features
from stqp.separability.result import Settings
from stqp.slides import open_slide

SMALL = Settings(block=70.0, guard=15.0, min_nuclei=20)


def measured(slide):
    with open_slide(slide.image, MPP) as opened:
        return features.measure(opened, slide.polygons, MPP)


def run(slides, known, settings=SMALL, by="fine"):
    record = RunRecord("separability", {})
    return analyse(slides, known, by, settings, record), record


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    made = planted(tmp_path_factory.mktemp("planted"), 11)
    return made, measured(made)


def auc_of(found, a, b):
    names = [g.name for g in found.groups]
    (pair,) = [p for p in found.pairs if {names[p.a], names[p.b]} == {a, b}]
    return pair


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_pair_is_merged_and_the_others_are_not(tmp_path, seed):
    made = planted(tmp_path, seed)
    found, _ = run([made], [measured(made)])
    merged = {frozenset(found.groups[g].name for g in c.members) for c in found.merging.classes}
    alone = {frozenset([g.name]) for g in found.groups if g.name not in ("T cells", "B cells")}
    assert merged == {frozenset(["T cells", "B cells"]), *alone} and len(alone) >= 3
    same = auc_of(found, "T cells", "B cells")
    assert same.auc.low < 0.5 < same.auc.high and same.chance and same.verdict == "not told apart"
    for p in found.pairs:
        if p != same:
            assert p.auc.value > 0.9
    by_name = {p.name: (p, c) for p, c in zip(found.proposed, found.merging.classes, strict=True)}
    assert set(by_name["Inflammatory"][0].types) == {"T cells", "B cells"}
    assert all(c.recall.value > 0.85 for _, c in by_name.values())
    assert found.taxonomy.classes[0] == "Neoplastic" and "Neoplastic" not in found.taxonomy.types


@pytest.mark.parametrize("seed", [24, 26, 27])
def test_a_stain_that_fades_does_not_fake_a_difference(tmp_path, seed):
    made = planted(tmp_path, seed, fade=0.4)
    found, _ = run([made], [measured(made)])
    same = auc_of(found, "T cells", "B cells")
    assert same.over_all > 0.65 and not same.apart  # as it seems without a look at where they stand
    assert same.auc.value < 0.6 and same.auc.low < 0.5 and same.chance
    names = [{found.groups[g].name for g in c.members} for c in found.merging.classes]
    assert {"T cells", "B cells"} in names


def test_lineages_are_merged_on_demand_only_and_it_is_said(slide):
    made, known = slide
    alike = made.classes.copy()
    alike[made.group == "T cells"] = "Connective"  # one look, two classes
    made = dataclasses.replace(made, classes=alike)
    apart, _ = run([made], [known])
    names = [{apart.groups[g].name for g in c.members} for c in apart.merging.classes]
    assert {"T cells"} in names and {"B cells"} in names
    assert any("--across-lineages" in n and "cannot be told apart" in n for n in apart.notes)
    joined, _ = run([made], [known], dataclasses.replace(SMALL, across=True))
    (i,) = [
        i for i, c in enumerate(joined.merging.classes)
        if {joined.groups[g].name for g in c.members} == {"T cells", "B cells"}
    ]  # fmt: skip
    assert set(joined.proposed[i].lineages) == {"Connective", "Inflammatory"}
    assert joined.proposed[i].name not in joined.taxonomy.parents
    assert any("joins lineages" in n for n in joined.notes)


def test_clusters_of_one_fine_type_are_proposed_together_and_it_is_said(slide):
    made, known = slide
    number = {"T cells": "0", "B cells": "1", "Fibroblasts": "2", "Neoplastic": "3", "Enterocytes": "4", "Dying": "5"}
    kind = made.type.copy()
    kind[kind == "Enterocytes"] = "Fibroblasts"  # as if it were named wrongly
    group = np.array([f"{number[g]} {k}" for g, k in zip(made.group.tolist(), kind.tolist(), strict=True)], object)
    found, _ = run([dataclasses.replace(made, group=group, type=kind)], [known], by="cluster")
    assert any("2 Fibroblasts" in n and "4 Fibroblasts" in n and "seem to look different" in n for n in found.notes)
    (mixed,) = [p for p in found.proposed if "Fibroblasts" in p.types]
    tree = [{found.groups[g].name for g in c.members} for c in found.tree.classes]
    assert {"2 Fibroblasts"} in tree and {"4 Fibroblasts"} in tree and mixed.types == ("Fibroblasts",)


def test_several_slides_are_held_out_whole(tmp_path):
    slides = [planted(tmp_path, seed, (1000, 900)) for seed in (1, 2, 3)]
    found, record = run(slides, [measured(s) for s in slides], dataclasses.replace(SMALL, min_nuclei=15))
    assert found.by_slide and found.folds == 3
    assert len(found.y) == record.counts["nuclei judged"]
    same = auc_of(found, "T cells", "B cells")
    assert same.chance and auc_of(found, "T cells", "Fibroblasts").auc.value > 0.9
    assert {g.slides for g in found.groups} <= {2, 3}


def test_small_groups_are_listed_and_not_merged(slide):
    made, known = slide
    group, kind = made.group.copy(), made.type.copy()
    few = np.flatnonzero(group == "T cells")[:9]
    group[few] = kind[few] = "Mast cells"
    found, record = run([dataclasses.replace(made, group=group, type=kind)], [known])
    assert [g.name for g in found.small if g.name == "Mast cells"] and "Mast cells" not in str(found.taxonomy.types)
    assert record.skipped["nuclei of groups too small to judge"] >= 9
    assert any(n.startswith("Mast cells (9 nuclei") and "the class Inflammatory" in n for n in found.notes)


def test_the_same_seed_gives_the_same(slide):
    made, known = slide
    a, b = (run([made], [known])[0] for _ in range(2))
    assert np.array_equal(a.scores, b.scores) and a.pairs == b.pairs and a.taxonomy == b.taxonomy
    c, _ = run([made], [known], dataclasses.replace(SMALL, seed=1))
    assert a.pairs != c.pairs


def test_what_cannot_be_judged_is_said(slide):
    made, known = slide
    one = np.full(len(made.group), None, object)
    one[made.group == "Fibroblasts"] = "Fibroblasts"
    with pytest.raises(InputError, match="all nuclei are of one group, Fibroblasts"):
        run([dataclasses.replace(made, group=one)], [known])
    with pytest.raises(InputError, match="run stqp label first"):
        run([dataclasses.replace(made, group=np.full(len(one), None, object))], [known])
    with pytest.raises(
        InputError, match=r"fewer than two groups have 20 nuclei in 5 blocks of 400 µm.*smaller --block"
    ):
        run([made], [known], dataclasses.replace(SMALL, block=400.0))
    with pytest.raises(InputError, match="fewer than two groups have 5000 nuclei"):
        run([made], [known], dataclasses.replace(SMALL, min_nuclei=5000))
    wrong = {"block": 0.0, "guard": -1.0, "least": 1.0, "min_nuclei": 3}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match="expected --"):
            dataclasses.replace(SMALL, **{name: value}).check()


def test_nuclei_of_which_nothing_is_given_are_left_out(slide):
    made, known = slide
    values = known.values.copy()
    values[::3] = np.nan
    record = RunRecord("separability", {})
    found = analyse([made], [Features(values, known.names)], "fine", SMALL, record, only_known=True)
    assert record.skipped["nuclei of which nothing is given"] == len(values[::3])
    assert not (found.row % 3 == 0).any()
