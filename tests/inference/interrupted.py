"""Predicts a slide in a process that a test kills; run as ``python interrupted.py SLIDE FOLDER RESULT PAUSE``."""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from perfect_maps import ColourNetwork

OPTIONS = {"mpp": 0.25, "tissue": False, "tile": 256, "batch_size": 2}
BEGUN = 4  # batches, after which the first is kept also on a machine that has much else to do


class SlowNetwork(ColourNetwork):
    """Takes its time for each batch, so that there is something to interrupt."""

    def __init__(self, pause):
        super().__init__()
        self.pause, self.batches = pause, 0

    def predict(self, batch):
        self.batches += 1
        if self.batches == BEGUN:
            print("begun", flush=True)
        time.sleep(self.pause)
        return super().predict(batch)


def main():
    from stqp.inference.engine import predict_slide
    from stqp.slides import open_slide

    slide, folder, result, pause = sys.argv[1:]
    network = SlowNetwork(float(pause))
    with open_slide(slide) as opened:
        found = predict_slide(opened, network, folder=Path(folder), **OPTIONS)
    temporary = Path(result).with_suffix(".part.npz")
    np.savez(temporary, coords=found.polygons.coords, prob=found.class_prob, windows=network.windows)
    temporary.rename(result)


if __name__ == "__main__":
    main()
