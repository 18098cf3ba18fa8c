"""The file of patches, and the crops drawn from it."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from stqp.errors import InputError
from stqp.patches.store import TRAINING, UNKNOWN_TYPE, VALIDATION, PatchFile, PatchWriter
from stqp.training.augment import Crop, warp
from stqp.training.data import CONTEXT, EndlessBatches, TrainingCrops, loader, one_opencv_thread, targets
from stqp.training.targets import hv_map


def write(path, n=3, size=128):
    rng = np.random.default_rng(0)
    rows = []
    with PatchWriter(path, size, 0.25, ["a", "b"]) as writer:
        for i in range(n):
            instances = np.zeros((size, size), np.int32)
            instances[20:50, 30:70] = 1
            instances[80:110, 60:100] = 2
            types = np.array([0, 1, UNKNOWN_TYPE], np.uint8)[instances]
            image = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            rows.append((image, instances, types))
            valid = np.ones((size, size), np.uint8)
            writer.append((i * 10.0, 5.0), 0, i % 2, images=image, instances=instances, types=types, valid=valid)
        writer.finish([{"entry": "x"}])
    return rows


def test_what_is_written_is_read(tmp_path):
    rows = write(tmp_path / "p.h5")
    patches = pickle.loads(pickle.dumps(PatchFile(tmp_path / "p.h5")))
    assert (len(patches), patches.size, patches.mpp, patches.classes) == (3, 128, 0.25, ["a", "b"])
    assert [*patches.side] == [TRAINING, VALIDATION, TRAINING] and patches.origin[2, 0] == 20
    patch = patches.read(1)
    for name, expected in zip(("images", "instances", "types"), rows[1], strict=True):
        assert (patch[name] == expected).all()


def test_a_truncated_file_is_refused(tmp_path):
    write(tmp_path / "p.h5")
    content = (tmp_path / "p.h5").read_bytes()
    (tmp_path / "p.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"p\.h5"):
        PatchFile(tmp_path / "p.h5")


def test_crops_are_the_same_for_the_same_seed_and_differ_by_number(tmp_path):
    write(tmp_path / "p.h5")
    patches = PatchFile(tmp_path / "p.h5")
    rows = np.flatnonzero(patches.side == TRAINING)
    first = TrainingCrops(patches, rows, 64, 8, seed=3)
    again = TrainingCrops(patches, rows, 64, 8, seed=3)
    assert len(first) == 2 * 4
    for k, v in first[5].items():
        assert torch.equal(v, again[5][k])
    assert not torch.equal(first[5]["image"], first[7]["image"])
    assert first[0]["image"].shape == (3, 64, 64) and first[0]["hv"].shape == (2, 48, 48)


def test_the_order_differs_by_epoch_and_covers_all():
    numbers = [n for batch in itertools.islice(EndlessBatches(10, 5, seed=0), 4) for n in batch]
    first, second = numbers[:10], [n - 10 for n in numbers[10:]]
    assert sorted(first) == sorted(second) == [*range(10)] and first != second


@pytest.mark.parametrize("batch", [3, 7, 16])
def test_batches_go_on_from_anywhere_and_are_shared_out(batch):
    whole = [*itertools.islice(EndlessBatches(10, 2 * batch, seed=1), 8)]
    assert [*itertools.islice(EndlessBatches(10, 2 * batch, seed=1, start=3), 5)] == whole[3:]
    shares = [[*itertools.islice(EndlessBatches(10, batch, 1, rank=r, world=2), 8)] for r in (0, 1)]
    for one, left, right in zip(whole, *shares, strict=True):
        assert sorted(one) == sorted(left + right) and len(left) == len(right) == batch
    assert len({n for one in whole for n in one}) == 16 * batch  # no crop is shown twice


def test_workers_make_the_same_crops_and_do_not_wait_for_threads_of_opencv(tmp_path):
    import cv2

    write(tmp_path / "p.h5")
    crops = TrainingCrops(PatchFile(tmp_path / "p.h5"), np.array([0, 2]), 64, 8, seed=3)
    cv2.setNumThreads(4)
    cv2.warpAffine(np.zeros((2000, 2000, 3), np.uint8), np.eye(2, 3), (2000, 2000))  # starts OpenCV's threads
    threads = cv2.getNumThreads()
    with one_opencv_thread():
        made = [*itertools.islice(loader(crops, EndlessBatches(len(crops), 2, 0), 2, False), 3)]
    assert cv2.getNumThreads() == threads
    for batch, numbers in zip(made, itertools.islice(EndlessBatches(len(crops), 2, 0), 3), strict=True):
        for row, number in enumerate(numbers):
            assert torch.equal(batch["image"][row], crops[number]["image"])
            assert torch.equal(batch["hv"][row], crops[number]["hv"])


def test_targets_know_the_whole_nucleus_beyond_the_crop(tmp_path):
    size = 64 + 2 * CONTEXT
    instances = np.zeros((size, size), np.int32)
    instances[CONTEXT - 10 : CONTEXT + 10, 60:80] = 5  # half of it above the crop
    types = np.where(instances > 0, UNKNOWN_TYPE, 0).astype(np.uint8)
    full = np.full((size, size), 255, np.uint8)
    crop = Crop(np.zeros((size, size, 3), np.uint8), instances, types, np.ones_like(full), full)
    made = targets(crop, margin=0)
    inner = slice(CONTEXT, CONTEXT + 64)
    assert np.allclose(made["hv"].numpy(), hv_map(instances)[:, inner, inner])
    assert float(made["hv"][1].min()) >= 0  # all that is seen lies below the centre
    assert not made["typed"].numpy()[made["np"].numpy() > 0].any() and not made["tp"].any()


def test_warp_moves_image_and_maps_alike():
    y, x = np.mgrid[:101, :101]
    instances = (((x - 60) ** 2 + (y - 40) ** 2) < 15**2).astype(np.int32) * 7
    image = np.repeat(np.where(instances > 0, 50, 200)[..., None], 3, 2).astype(np.uint8)
    field = Crop(image, instances, (instances > 0).astype(np.uint8), np.ones_like(image[..., 0]), image[..., 0])
    angle = 0.7
    linear = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.column_stack([linear, np.array([50, 50]) - linear @ np.array([40, 40])])
    out = warp(field, matrix, 81)
    dark = out.image[..., 0] < 125
    assert (dark != (out.instances == 7)).sum() <= 12 and (out.types == (out.instances > 0)).all()
    assert out.weight[out.instances == 7].max() == 50  # weights move along too
