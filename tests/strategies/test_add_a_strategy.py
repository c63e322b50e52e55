"""The page that tells how to add a strategy: its example is learned with, and no hook is left out."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import perdure.losses
from perdure.catalog import Catalog
from perdure.encoders import build_encoder
from perdure.errors import ConfigError
from perdure.records import Batch, Embedded
from perdure.strategies import Strategy, TaskContext

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-strategy.md").read_text()


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Catalog[Strategy]:
    """The page's two blocks of code, as the reader would type them in."""
    loss, strategy = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    written: dict[str, Any] = {"__name__": "written"}
    exec(loss, written)
    monkeypatch.setattr(perdure.losses, "cosine_distance", written["cosine_distance"], raising=False)
    exec(strategy, written)
    assert '`"cosine": CosineDistillation,`' in PAGE
    return Catalog("strategy", {"cosine": written["CosineDistillation"]})


def test_the_example_adds_its_term_from_the_second_task_on(catalog: Catalog[Strategy]) -> None:
    parent = build_encoder("small_resnet", {"embedding_dim": 8, "width": 4, "image_size": 16}, with_text=False, seed=0)
    parent.grow(num_classes=3)
    batch = Batch(torch.arange(12), torch.arange(12) % 3 + 3, torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    strategy = catalog.build("cosine", {"weight": 2.0, "max_share": None})
    strategy.begin_task(parent, TaskContext(0, torch.arange(3)))
    assert strategy.observe(batch) == {}
    strategy.begin_task(parent, TaskContext(1, torch.arange(3, 6)))
    student = parent.train()
    student.grow(num_classes=6)
    image = student(batch.images)[0]
    seen = strategy.observe(batch)
    terms = strategy.loss_terms(student, Embedded(batch.labels, image, **seen))
    expected = 0.0
    for row in range(12):
        taught, own = seen["teacher_image"][row], image[row].detach()
        expected += 2 * (1 - float(taught @ own / (taught.norm() * own.norm()))) / 12
    assert expected > 0.01 and set(terms) == {"triplet", "cross_entropy", "cosine"}
    assert terms["cosine"].item() == pytest.approx(expected, rel=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    with pytest.raises(ConfigError, match="weight"):
        catalog.build("cosine", {"weight": -1})


def test_every_hook_of_a_strategy_is_named_with_a_sentence() -> None:
    hooks = [name for name, _ in inspect.getmembers(Strategy) if not name.startswith("_")]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+\.) \|$", PAGE, re.MULTILINE))
    assert len(hooks) > 15 and sorted(rows) == sorted(hooks)
