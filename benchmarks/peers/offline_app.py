"""NIMA as people run it from a script: files in, scores out, no server.

    python offline_app.py keras|iqa|iqa-inception FOLDER WORKERS

Says ``ready``, then reads how many seconds to work, a line each, and answers with a line of JSON:
images scored, seconds taken, CPU seconds of this process and its children.

- ``keras``: as idealo/image-quality-assessment predicts: ``load_img`` at the target size, batches
  of 64 from a data generator, ``model.predict``; TensorFlow on all cores.
- ``iqa``: IQA-PyTorch, ``pyiqa.create_metric("nima")`` called with each file; torch on all cores.
- ``iqa-inception``: the same with the InceptionResNetV2 that it ships weights for.

The first two run networks of about the bundled one's cost (MobileNet of width 0.75 and MobileNetV2,
325 and 301 million multiply-adds against 380), with random weights: none may be downloaded here,
and they do not change the speed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

SIDE = 224
BATCH = 64


def keras_scorer(files: list[Path], workers: int) -> Callable[[], int]:
    """Scores one round of two batches."""
    os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import keras
    import numpy as np

    base = keras.applications.MobileNet(
        input_shape=(SIDE, SIDE, 3), alpha=0.75, weights=None, include_top=False, pooling="avg"
    )
    scores = keras.layers.Dense(10, activation="softmax")(keras.layers.Dropout(0.75)(base.output))
    model = keras.Model(base.inputs, scores)

    class Photos(keras.utils.PyDataset):
        """The project's ``TestDataGenerator``."""

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int):
            chosen = [files[(index * BATCH + k) % len(files)] for k in range(BATCH)]
            images = [keras.utils.load_img(file, target_size=(SIDE, SIDE)) for file in chosen]
            batch = np.stack([np.asarray(image, np.float32) for image in images])
            return (keras.applications.mobilenet.preprocess_input(batch),)

    def score() -> int:
        answers = model.predict(Photos(workers=workers), verbose=0)
        assert answers.shape == (2 * BATCH, 10)
        return len(answers)

    return score


def iqa_scorer(files: list[Path], workers: int, backbone: str) -> Callable[[], int]:
    """Scores one file."""
    import timm
    import torch

    create = timm.create_model
    # pyiqa asks for ImageNet weights even when it loads its own over them.
    timm.create_model = lambda *args, **kwargs: create(*args, **{**kwargs, "pretrained": False})
    import pyiqa

    torch.set_num_threads(workers)
    metric = pyiqa.create_metric(
        "nima", base_model_name=backbone, pretrained=False, device=torch.device("cpu")
    )
    scored = 0

    def score() -> int:
        nonlocal scored
        mean = float(metric(str(files[scored % len(files)])))
        assert 1 <= mean <= 10
        scored += 1
        return 1

    return score


def _cpu_seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main(kind: str, folder: Path, workers: int) -> None:
    """Work when told to."""
    files = sorted(folder.iterdir())
    if kind == "keras":
        score = keras_scorer(files, workers)
    else:
        backbone = "inception_resnet_v2" if kind == "iqa-inception" else "mobilenetv2_100"
        score = iqa_scorer(files, workers, backbone)
    score()
    print("ready", flush=True)
    for line in sys.stdin:
        begin, cpu, images = time.perf_counter(), _cpu_seconds(), 0
        while images == 0 or time.perf_counter() - begin < float(line):
            images += score()
        answer = {
            "images": images,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": _cpu_seconds() - cpu,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
