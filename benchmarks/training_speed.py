"""Images per second of the training loop beside a plain PyTorch loop: same model, same pictures, same run, as a ratio.

    python benchmarks/training_speed.py [--steps 30] [--rounds 5] [--threads N]

The plain loop is what one writes first: float32, default layout, a DataLoader over decoded tensors, the same terms. The two take
turns, so that whatever else the machine does meets both; the figure is the median of the rounds' ratios.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import DataLoader, TensorDataset

from perdure.data import DATASETS
from perdure.data.pixels import Pixels, open_pixels
from perdure.encoders import Encoder, build_encoder
from perdure.losses import batch_triplet
from perdure.strategies import STRATEGIES, TaskContext
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision, resolve_precision
from perdure.training.schedule import Schedule

SIZE, CLASSES, BATCH = 32, 24, 128


def encoder() -> Encoder:
    made = build_encoder("small_resnet", {"image_size": SIZE, "text": "none"}, with_text=False, seed=0)
    made.grow(num_classes=CLASSES)
    return made


def plain(images: torch.Tensor, labels: torch.Tensor, steps: int) -> float:
    """The plain loop; images per second."""
    model = encoder().to(memory_format=torch.contiguous_format).train()  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True, drop_last=True)
    done, started = 0, 0.0
    while done < steps + 3:
        for batch, target in loader:
            if torch.rand(()) < 0.5:
                batch = batch.flip(-1)
            embedding, _ = model(batch)
            loss = batch_triplet(normalize(embedding), target) + cross_entropy(model.classifier(embedding), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == 3:  # warm
                started = time.perf_counter()
            if done == steps + 3:
                break
    return steps * BATCH / (time.perf_counter() - started)


def ours(pixels: Pixels, labels: np.ndarray, steps: int, precision: Precision, strategy_name: str = "fine_tune") -> float:
    """The loop of this package, augmentation and logging included; images per second."""
    student = encoder()
    strategy = STRATEGIES.build(strategy_name, {})
    strategy.begin_task(student, TaskContext(0 if strategy_name == "fine_tune" else 1, torch.arange(CLASSES)))
    data = TaskData(pixels, np.arange(len(labels)), labels)
    schedule = Schedule(epochs=100, batch_size=BATCH, per_class=4, max_steps=steps + 3, checkpoint_every=0)
    times: list[float] = []
    train_task(student, strategy, data, schedule, precision=precision, on_step=lambda *_: times.append(time.perf_counter()))
    return steps * BATCH / (times[-1] - times[2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    dataset = DATASETS.build("scenes", {"items": 1536, "classes": CLASSES, "size": SIZE})
    names = sorted({item.label for item in dataset.items})
    labels = np.array([names.index(item.label) for item in dataset.items])
    with tempfile.TemporaryDirectory() as cache:
        pixels = open_pixels(dataset, SIZE, cache=Path(cache), on_bad_item="stop")
        images = torch.from_numpy(pixels.take(np.arange(len(labels)))).permute(0, 3, 1, 2).float().div(255).contiguous()
        auto, fp32 = resolve_precision("auto"), resolve_precision("fp32")
        rows: dict[str, list[float]] = {"plain": [], "ours fp32": [], f"ours auto ({auto.name})": [], "ours auto, correlation": []}
        for _ in range(given.rounds):
            rows["plain"].append(plain(images, torch.from_numpy(labels), given.steps))
            rows["ours fp32"].append(ours(pixels, labels, given.steps, fp32))
            rows[f"ours auto ({auto.name})"].append(ours(pixels, labels, given.steps, auto))
            rows["ours auto, correlation"].append(ours(pixels, labels, given.steps, auto, "correlation"))
    print(f"{given.threads} threads, batch {BATCH}, {SIZE} x {SIZE}, {given.rounds} rounds of {given.steps} steps")
    for name, speeds in rows.items():
        ratios = [speed / base for speed, base in zip(speeds, rows["plain"], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:28s} {statistics.median(speeds):8.0f} images/s   {statistics.median(ratios):5.2f} x plain   {spread}")


if __name__ == "__main__":
    main()
