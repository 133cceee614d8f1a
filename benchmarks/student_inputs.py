"""A student's share of waiting for its inputs, with 0 and with 2 workers.

The images are JPEG files of 3 x 256 x 256 in class folders, and their views random_resized_crop to 224. The store keeps
no inputs, or with --encoded the files of the images, so every step decodes files, augments them and compares digests. Waiting is that of the student's log, of
its last epoch, in which the workers run already.

Beside it stands the decoders' own time: seconds that one core takes to decode, crop and digest an image. A training
waits for its inputs if its step takes less than that, divided by the cores that are left for it.

Not part of `make bench`, since a run needs the machine to itself:
python benchmarks/student_inputs.py [--images 512] [--epochs 3] [--layers 2] [--workers 0 2] [--encoded]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import logitstore
from logitstore.pipeline.augment import augment_rows, random_resized_crop
from logitstore.pipeline.datasets import image_folder
from logitstore.storage.describe import describe
from logitstore.storage.digest import digest_rows

CLASSES, SIDE, SIZE, BATCH = 8, 256, 224, 32


class Network(nn.Module):
    """A convnet whose depth sets the time of a step."""

    def __init__(self, layers: int) -> None:
        """Make the network. layers: convolutions at a quarter of the size."""
        super().__init__()
        body = [layer for _ in range(layers) for layer in (nn.Conv2d(24, 24, 3, padding=1), nn.ReLU())]
        self.body = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.ReLU(), *body)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of uint8 images, (batch, 3, height, width)."""
        return self.head(self.body(images.float() / 255 - 0.5).mean(dim=(2, 3)))


def write_images(folder: Path, number: int) -> None:
    """Write smooth images with some noise, whose files have the size of photographs' (about 15 KB)."""
    random = np.random.default_rng(0)
    for index in range(number):
        coarse = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        pixels = np.asarray(coarse).astype(np.int16) + random.integers(-12, 13, (SIDE, SIDE, 3))
        path = folder / f"class-{index % CLASSES}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)


def decoders_time(images: Path) -> dict[str, float]:
    """Return the seconds a row of decoding, of cropping, and of both digests, on one core."""
    dataset = image_folder(str(images), mode="RGB")
    rows = np.arange(min(64, len(dataset)))
    began = time.perf_counter()
    inputs = np.stack([dataset[int(row)][0] for row in rows])
    decoded = time.perf_counter()
    views = augment_rows(inputs, random_resized_crop(SIZE), 0, 1, rows)
    cropped = time.perf_counter()
    digest_rows(inputs), digest_rows(views)
    ended = time.perf_counter()
    parts = {"decode": decoded - began, "crop": cropped - decoded, "digest": ended - cropped}
    return {name: part / len(rows) for name, part in parts.items()}


def waiting(folder: Path, dataset: object, workers: int, epochs: int, layers: int) -> tuple[float, float]:
    """Train a student; return its share of waiting in its last epoch, and its images a second."""
    name = f"workers-{workers}"
    logitstore.distill(
        folder / "store.zarr",
        Network(layers),
        lr=1e-3,
        epochs=epochs,
        dataset=dataset,
        augment=random_resized_crop(SIZE),
        views="cycle",
        batch_size=BATCH,
        temperature=4.0,
        checkpoint=folder / name,
        name=name,
        workers=workers,
        progress=False,
        device="cpu",
    )
    (log,) = (folder / name).rglob("*.metrics.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = [line for line in lines if line["event"] == "epoch"][-1]
    return float(last["waiting"]), float(last["rows_per_second"])


def step_time(layers: int) -> float:
    """Return the seconds an image of a training step, with the inputs in memory."""
    network, inputs = Network(layers), torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
    optimizer = torch.optim.Adam(network.parameters())
    for number in range(6):
        if number == 1:  # after one to warm up
            began = time.perf_counter()
        optimizer.zero_grad()
        network(inputs).logsumexp(dim=1).mean().backward()
        optimizer.step()
    return (time.perf_counter() - began) / 5 / BATCH


def main(number: int, epochs: int, layers: int, settings: list[int], *, encoded: bool = False) -> None:
    """Print the table."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="logitstore-bench-") as made:
        folder = Path(made)
        write_images(folder / "images", number)
        dataset = image_folder(str(folder / "images"), mode="RGB")
        store = logitstore.cache(
            folder / "store.zarr",
            {"t": Network(1)},
            dataset,
            views=2,
            augment=random_resized_crop(SIZE),
            first_view=0,
            store_inputs="encoded" if encoded else False,
            progress=False,
            device="cpu",
        )
        own = decoders_time(folder / "images")
        total, step = sum(own.values()), step_time(layers)
        print(
            f"{number} images of 3 x {SIDE} x {SIDE} as JPEG, random_resized_crop({SIZE}), {os.cpu_count()} cores"
        )
        parts = ", ".join(f"{name} {1e3 * part:.2f}" for name, part in own.items())
        print(
            f"  decoders' own time on one core: {1e3 * total:.2f} ms an image ({parts}); a step {1e3 * step:.2f}"
        )
        if encoded:
            kept = describe(store)[0]["samples"]["bytes"] / number
            print(f"  the store keeps {kept:,.0f} bytes a row of files, of {3 * SIDE * SIDE:,} as pixels")
        for workers in settings:
            share, speed = waiting(folder, None if encoded else dataset, workers, epochs, layers)
            each = f"{speed:.0f} images/s, {1e3 * share / speed:.2f} ms of waiting an image"
            print(f"  workers = {workers}: {100 * share:5.1f} % waiting; {each}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a student's share of waiting for its inputs.")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=2, help="convolutions of the student")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--encoded", action="store_true", help="keep the files in the store")
    given = parser.parse_args()
    main(given.images, given.epochs, given.layers, given.workers, encoded=given.encoded)
