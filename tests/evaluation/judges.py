"""Pairs of maps of all kinds, and the scores by their definitions, the slow and obvious way."""

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

DEGENERATE = ("empty truth", "empty prediction", "both empty", "one pixel", "touching", "nested", "same", "full")


def random_pair(seed):
    """Two small maps with types, consecutive ids; every 10th seed is a degenerate pair."""
    rng = np.random.default_rng(seed)
    if seed % 10 == 0:
        return degenerate_pair(DEGENERATE[seed // 10 % len(DEGENERATE)], rng)
    shape = tuple(rng.integers(12, 48, 2))
    true = draw(rng, shape, int(rng.integers(1, 14)))
    if seed % 3 == 0:  # the same nuclei moved, some lost
        pred = np.roll(true, rng.integers(-3, 4, 2), (0, 1))
        pred[rng.random(pred.max() + 1)[pred] < 0.2] = 0
    else:
        pred = draw(rng, shape, int(rng.integers(1, 14)))
    return packed(rng, true, pred)


def draw(rng, shape, number):
    inst = np.zeros(shape, np.int64)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    for label in range(1, number + 1):
        y, x = rng.random(2) * shape
        a, b = rng.uniform(0.6, 7, 2)
        inst[((yy - y) / a) ** 2 + ((xx - x) / b) ** 2 <= 1] = label
    return inst


def degenerate_pair(kind, rng):
    shape = (24, 30)
    empty, some = np.zeros(shape, np.int64), draw(rng, shape, 6)
    pixel, touching, nested = empty.copy(), empty.copy(), empty.copy()
    pixel[5, 7] = 1
    touching[2:10, 2:10], touching[2:10, 10:18], touching[10:18, 2:10] = 1, 2, 3
    nested[4:20, 4:20], nested[8:16, 8:16], nested[11:13, 11:13] = 1, 2, 3
    pairs = {
        "empty truth": (empty, some),
        "empty prediction": (some, empty),
        "both empty": (empty, empty),
        "one pixel": (pixel, np.roll(pixel, int(rng.integers(0, 2)), 1)),
        "touching": (touching, np.roll(touching, 2, 1)),
        "nested": (nested, np.where(nested == 2, 1, nested)),
        "same": (some, some),
        "full": (np.ones(shape, np.int64), some),
    }
    return packed(rng, *pairs[kind])


def packed(rng, true, pred):
    maps = [np.searchsorted(np.unique(np.r_[0, m.ravel()]), m) for m in (true, pred)]
    types = [rng.integers(0, 4, m.max()) for m in maps]
    return (*maps, *types)


def masks_of(inst):
    return [inst == i for i in range(1, inst.max() + 1)]


def slow_scores(true, pred, true_types, pred_types, mpp, classes):
    """All scores by their definitions, over all pairs of masks."""
    t, p = masks_of(true), masks_of(pred)
    inter = np.array([[(a & b).sum() for b in p] for a in t], float).reshape(len(t), len(p))
    union = np.array([[(a | b).sum() for b in p] for a in t], float).reshape(len(t), len(p))
    iou = inter / np.maximum(union, 1)
    pairs = [(a, b) for a in range(len(t)) for b in range(len(p)) if iou[a, b] > 0.5]
    result = {"dice": nan_ratio(2 * ((true > 0) & (pred > 0)).sum(), (true > 0).sum() + (pred > 0).sum())}

    def quality(tp, n, m, ious):
        if n + m == 0:
            return np.nan, np.nan, np.nan
        dq = tp / (tp + (n - tp) / 2 + (m - tp) / 2)
        sq = float(np.mean(ious)) if tp else 0.0
        return dq, sq, dq * sq

    result |= dict(zip(("dq", "sq", "pq"), quality(len(pairs), len(t), len(p), [iou[x] for x in pairs]), strict=True))
    result["bpq"] = result["pq"]

    def aggregate(chosen):
        i = sum(inter[x] for x in chosen)
        u = sum(union[x] for x in chosen)
        u += sum(t[a].sum() for a in range(len(t)) if a not in {x for x, _ in chosen})
        u += sum(p[b].sum() for b in range(len(p)) if b not in {y for _, y in chosen})
        return nan_ratio(i, u)

    best = [(a, int(iou[a].argmax())) for a in range(len(t)) if len(p) and iou[a].max() > 0]
    one = [(a, b) for a, b in zip(*linear_sum_assignment(-iou), strict=True) if iou[a, b] > 0]
    result |= {"aji": aggregate(best), "aji_plus": aggregate(one)}
    per_class = []
    for c in range(1, classes + 1):
        n = int((true_types == c).sum())
        on_unknown = {b for a, b in pairs if true_types[a] == 0}
        m = sum(pred_types[b] == c and b not in on_unknown for b in range(len(p)))
        mine = [iou[a, b] for a, b in pairs if true_types[a] == c and pred_types[b] == c]
        per_class.append(quality(len(mine), n, m, mine)[2])
    present = [c for c in range(classes) if (true_types == c + 1).any()]
    result["mpq"] = np.mean([per_class[c] for c in present]) if present else np.nan
    return result, per_class


def slow_typing(true_types, pred_types, pairs, classes):
    """F_c, type-F1 and the others over given pairs of nuclei."""
    known = [(true_types[a], pred_types[b]) for a, b in pairs if true_types[a] > 0]
    missed = [t for a, t in enumerate(true_types) if a not in {x for x, _ in pairs} and t > 0]
    extra = len(pred_types) - len(pairs)
    result = {}
    for c in range(1, classes + 1):
        tp = sum(t == c and p == c for t, p in known)
        tn = sum(t != c and p != c for t, p in known)
        fp, fn = sum(t != c and p == c for t, p in known), sum(t == c and p != c for t, p in known)
        absent = not (true_types == c).any() and not (pred_types == c).any()
        whole = 2 * (tp + tn) + 2 * fp + 2 * fn + extra + len(missed)
        result[c] = {
            "f_c": np.nan if absent else nan_ratio(2 * (tp + tn), whole),
            "type_f1": nan_ratio(2 * tp, 2 * tp + fp + fn),
            "precision": nan_ratio(tp, tp + fp),
            "recall": nan_ratio(tp, tp + fn),
        }
    return result, known


def slow_distances(a, b):
    """Mean, median and Hausdorff-95 of two masks by distance transforms, in px."""
    edges = [m & ~ndimage.binary_erosion(m, border_value=0) for m in (a, b)]
    there = [ndimage.distance_transform_edt(~e) for e in edges]
    directed = there[1][edges[0]], there[0][edges[1]]
    both = np.concatenate(directed)
    return both.mean(), np.median(both), max(np.quantile(d, 0.95) for d in directed)


def nan_ratio(part, whole):
    return part / whole if whole else np.nan
