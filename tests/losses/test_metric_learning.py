"""The losses and miners that the library brings, by our names: each equals the equation of its docstring written as loops."""

import ast
from collections.abc import Callable
from math import exp, log, radians, tan
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.errors import ConfigError
from perdure.losses import unit_rows
from perdure.losses.metric import METRIC_LOSSES, MINERS, ON_RAW_ROWS, PER_CLASS, WITH_MEMORY, WITHOUT_MINER, library
from perdure.losses.metric.objective import MetricObjective
from perdure.losses.quadruplet import batch_quadruplet

CLASSES = torch.tensor([3, 5, 6, 9])
LABELS = torch.tensor([5, 3, 5, 9, 3, 3, 9, 5, 6])  # 6 comes once: an anchor without a positive


def draw(seed: int = 0, labels: Tensor = LABELS) -> Tensor:
    """(B, 5) float64 rows of different length."""
    return 2 * torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def objective(name: str, options: dict[str, Any] | None = None, **given: Any) -> MetricObjective:
    return MetricObjective(name, options or {}, **{"class_ids": CLASSES, "embedding_dim": 5, "seed": 7, **given})


class Loops:
    """A batch as plain numbers: labels y, raw rows, cosines s, distances d, pairs and triplets of row numbers."""

    def __init__(self, raw: Tensor, labels: Tensor) -> None:
        unit = unit_rows(raw)
        self.y = labels.tolist()
        self.rows = range(len(self.y))
        self.raw = raw.tolist()
        self.unit = unit.tolist()
        self.s = (unit @ unit.T).tolist()
        self.d = [[(unit[i] - unit[j]).norm().item() for j in self.rows] for i in self.rows]
        self.pairs = [(a, p) for a in self.rows for p in self.rows if a != p and self.y[a] == self.y[p]]
        self.apart = [(a, n) for a in self.rows for n in self.rows if self.y[a] != self.y[n]]
        self.triplets = [(a, p, n) for a, p in self.pairs for b, n in self.apart if a == b]

    def negatives(self, a: int) -> list[int]:
        return [n for b, n in self.apart if a == b]

    def positives(self, a: int) -> list[int]:
        return [p for b, p in self.pairs if a == b]

    def cosines(self, vectors: Tensor) -> list[list[float]]:
        """Of each row with each of the vectors."""
        return (torch.tensor(self.unit).double() @ unit_rows(vectors.detach().double()).T).tolist()


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def mean_of_hinges(values: list[float]) -> float:
    above = [value for value in values if value > 0]
    return mean(above) if above else 0.0


def contrastive(b: Loops, loss: Any, positive_margin: float, negative_margin: float) -> float:
    return mean_of_hinges([b.d[a][p] - positive_margin for a, p in b.pairs]) + mean_of_hinges(
        [negative_margin - b.d[a][n] for a, n in b.apart]
    )


def triplet_margin(b: Loops, loss: Any, margin: float, distance: str = "euclidean") -> float:
    power = 2 if distance == "squared" else 1
    return mean_of_hinges([margin + b.d[a][p] ** power - b.d[a][n] ** power for a, p, n in b.triplets])


def n_pairs(b: Loops, loss: Any, norm_weight: float) -> float:
    chosen = [b.pairs[[b.y[a] for a, _ in b.pairs].index(label)] for label in sorted({b.y[a] for a, _ in b.pairs})]

    def dot(i: int, j: int) -> float:
        return sum(x * y for x, y in zip(b.raw[i], b.raw[j], strict=True))

    terms = [log(1 + sum(exp(dot(a, q) - dot(a, p)) for _, q in chosen if q != p)) for a, p in chosen]
    return mean(terms) + norm_weight * mean([dot(i, i) for i in b.rows])


def lifted_structure(b: Loops, loss: Any, margin: float) -> float:
    def term(a: int, p: int) -> float:
        pushed = sum(exp(margin - b.d[a][n]) for n in b.negatives(a)) + sum(exp(margin - b.d[p][n]) for n in b.negatives(p))
        return 0.5 * max(0.0, b.d[a][p] + log(pushed)) ** 2

    return mean([term(a, p) for a, p in b.pairs])


def ranked_list(b: Loops, loss: Any, margin: float, boundary: float, temperature: float, positive_temperature: float) -> float:
    def weighted(violations: list[float], at: float) -> float:
        weights = [exp(at * violation) if violation > 0 else 0.0 for violation in violations]
        total = sum(weights)
        return sum(w * v for w, v in zip(weights, violations, strict=True)) / total if total else 0.0

    def term(a: int) -> float:
        near = weighted([b.d[a][p] - (boundary - margin) for p in b.positives(a)], positive_temperature)
        return 0.5 * near + 0.5 * weighted([boundary - b.d[a][n] for n in b.negatives(a)], temperature)

    return mean([term(a) for a in b.rows])


def angular(b: Loops, loss: Any, degrees: float) -> float:
    t = tan(radians(degrees)) ** 2

    def term(a: int, p: int) -> float:
        return log(1 + sum(exp(4 * t * (b.s[a][n] + b.s[p][n]) - 2 * (1 + t) * b.s[a][p]) for n in b.negatives(a)))

    return mean([term(a, p) for a, p in b.pairs])


def margin(b: Loops, loss: Any, margin: float) -> float:
    beta = {label: loss.beta[place].item() for place, label in enumerate(CLASSES.tolist())}
    hinges = [margin + b.d[a][p] - beta[b.y[a]] for a, p, _ in b.triplets] + [margin + beta[b.y[a]] - b.d[a][n] for a, _, n in b.triplets]
    return mean_of_hinges(hinges)


def multi_similarity(b: Loops, loss: Any, alpha: float, beta: float, base: float) -> float:
    def term(a: int) -> float:
        near = log(1 + sum(exp(-alpha * (b.s[a][p] - base)) for p in b.positives(a))) / alpha
        return near + log(1 + sum(exp(beta * (b.s[a][n] - base)) for n in b.negatives(a))) / beta

    return mean([term(a) for a in b.rows])


def circle(b: Loops, loss: Any, margin: float, scale: float) -> float:
    def term(a: int) -> float:
        near = sum(exp(-scale * max(0, 1 + margin - b.s[a][p]) * (b.s[a][p] - 1 + margin)) for p in b.positives(a))
        return log(1 + near * sum(exp(scale * max(0, b.s[a][n] + margin) * (b.s[a][n] - margin)) for n in b.negatives(a)))

    return mean([term(a) for a in b.rows if b.positives(a)])


def ntxent(b: Loops, loss: Any, temperature: float) -> float:
    def term(a: int, p: int) -> float:
        near = exp(b.s[a][p] / temperature)
        return -log(near / (near + sum(exp(b.s[a][n] / temperature) for n in b.negatives(a))))

    return mean([term(a, p) for a, p in b.pairs])


def supcon(b: Loops, loss: Any, temperature: float) -> float:
    def term(a: int) -> float:
        total = sum(exp(b.s[a][i] / temperature) for i in b.rows if i != a)
        return mean([-log(exp(b.s[a][p] / temperature) / total) for p in b.positives(a)])

    return mean([term(a) for a in b.rows if b.positives(a)])


def proxy_nca(b: Loops, loss: Any, scale: float) -> float:
    place, s = CLASSES.tolist().index, b.cosines(loss.proxies)
    return mean([-log(exp(-scale * (2 - 2 * s[i][place(b.y[i])])) / sum(exp(-scale * (2 - 2 * each)) for each in s[i])) for i in b.rows])


def proxy_anchor(b: Loops, loss: Any, margin: float, alpha: float) -> float:
    s = b.cosines(loss.proxies)

    def pulled(c: int) -> float:
        return log(1 + sum(exp(-alpha * (s[i][c] - margin)) for i in b.rows if b.y[i] == int(CLASSES[c])))

    def pushed(c: int) -> float:
        return log(1 + sum(exp(alpha * (s[i][c] + margin)) for i in b.rows if b.y[i] != int(CLASSES[c])))

    present = [c for c in range(4) if int(CLASSES[c]) in b.y]
    return sum(pulled(c) for c in present) / len(present) + sum(pushed(c) for c in range(4)) / 4


def soft_triple(b: Loops, loss: Any, centers: int, scale: float, temperature: float, margin: float) -> float:
    s = b.cosines(loss.fc.T)

    def similarity(i: int, c: int) -> float:
        own = s[i][c * centers : (c + 1) * centers]
        total = sum(exp(each / temperature) for each in own)
        return sum(exp(each / temperature) / total * each for each in own)

    def term(i: int) -> float:
        logits = [scale * (similarity(i, c) - margin * (int(CLASSES[c]) == b.y[i])) for c in range(4)]
        return -log(exp(logits[CLASSES.tolist().index(b.y[i])]) / sum(exp(each) for each in logits))

    return mean([term(i) for i in b.rows])


EQUATIONS: list[tuple[Callable[..., float], dict[str, Any]]] = [
    (contrastive, {"positive_margin": 0.0, "negative_margin": 1.0}),
    (contrastive, {"positive_margin": 0.5, "negative_margin": 1.4}),
    (triplet_margin, {"margin": 0.2}),
    (triplet_margin, {"margin": 0.1, "distance": "squared"}),
    (n_pairs, {"norm_weight": 0.03}),
    (lifted_structure, {"margin": 1.2}),
    (ranked_list, {"margin": 0.4, "boundary": 1.3, "temperature": 3.0, "positive_temperature": 1.0}),
    (angular, {"degrees": 35.0}),
    (margin, {"margin": 0.3}),
    (multi_similarity, {"alpha": 3.0, "beta": 20.0, "base": 0.4}),
    (circle, {"margin": 0.3, "scale": 7.0}),
    (ntxent, {"temperature": 0.3}),
    (supcon, {"temperature": 0.4}),
    (proxy_nca, {"scale": 3.0}),
    (proxy_anchor, {"margin": 0.2, "alpha": 4.0}),
    (soft_triple, {"centers": 3, "scale": 5.0, "temperature": 0.2, "margin": 0.1}),
]


@pytest.mark.parametrize(("equation", "options"), EQUATIONS, ids=[f"{equation.__name__}-{i}" for i, (equation, _) in enumerate(EQUATIONS)])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_its_equation_written_as_loops(equation: Callable[..., float], options: dict[str, Any], seed: int) -> None:
    raw, metric = draw(seed), objective(equation.__name__, options)
    if equation is margin:
        with torch.no_grad():
            metric.loss.beta += torch.tensor([0.0, 0.1, -0.2, 0.3])
    tolerance = 1e-3 if equation is ranked_list else 1e-5  # the library adds 1e-5 to each weight of a ranked list
    assert metric(raw, LABELS).item() == pytest.approx(equation(Loops(raw, LABELS), metric.loss, **options), rel=tolerance)


def test_every_loss_but_two_is_held_against_its_equation() -> None:
    """`quadruplet` has a test file of its own; `fast_ap` is a histogram, see below."""
    assert {equation.__name__ for equation, _ in EQUATIONS} | {"quadruplet", "fast_ap"} == set(METRIC_LOSSES)


def test_quadruplet_is_our_own_on_unit_rows() -> None:
    expected = batch_quadruplet(unit_rows(draw()), LABELS, margin=0.4, other_margin=0.1)
    torch.testing.assert_close(objective("quadruplet", {"margin": 0.4, "other_margin": 0.1})(draw(), LABELS), expected)


def test_fast_ap_falls_to_zero_as_rankings_become_perfect() -> None:
    labels = torch.tensor([3, 3, 3, 5, 5, 5])
    corners = torch.eye(5, dtype=torch.float64)[labels - 3]
    values = [objective("fast_ap")(corners + noise * draw(labels=labels), labels).item() for noise in (0.0, 0.3, 3.0)]
    assert values[0] == pytest.approx(0.0, abs=1e-9) and values == sorted(values) and values[-1] > 0.2


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_every_loss_starts_from_its_defaults_with_a_finite_gradient(name: str) -> None:
    raw, metric = draw().float().requires_grad_(), objective(name)
    loss = metric(raw, LABELS)
    loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32 and loss.item() > 0
    gradients = [raw.grad, *(parameter.grad for parameter in metric.parameters())]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)
    assert bool(list(metric.parameters())) == (name in PER_CLASS)


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_only_losses_on_raw_rows_see_how_long_a_row_is(name: str) -> None:
    lengths = torch.linspace(0.5, 3, len(LABELS), dtype=torch.float64)[:, None]
    one, other = (objective(name)(raw, LABELS).item() for raw in (draw(), lengths * draw()))
    assert (one != pytest.approx(other, rel=1e-6)) == (name in ON_RAW_ROWS)


@pytest.mark.parametrize("name", sorted(set(METRIC_LOSSES) - {"n_pairs"}))  # takes the first two rows of a class
def test_does_not_depend_on_batch_order(name: str) -> None:
    order = torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(objective(name)(draw()[order], LABELS[order]), objective(name)(draw(), LABELS))


BATCHES = {
    "one row": (torch.ones(1, 5), [5]),
    "one class": (draw().float()[:3], [5, 5, 5]),
    "no positives": (draw().float()[:3], [3, 5, 6]),
    "equal rows": (torch.ones(6, 5), [3, 3, 5, 5, 9, 9]),
    "zero rows": (torch.zeros(6, 5), [3, 3, 5, 5, 9, 9]),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_a_batch_with_nothing_to_compare_gives_a_finite_loss_and_gradient(name: str, batch: str) -> None:
    start, labels = BATCHES[batch]
    for miner in [None, *MINERS] if name not in WITHOUT_MINER else [None]:
        raw = start.clone().requires_grad_()
        loss = objective(name, miner=None if miner is None else (miner, {}))(raw, torch.tensor(labels))
        loss.backward()
        assert loss.isfinite() and raw.grad is not None and raw.grad.isfinite().all(), miner


# Miners


def chosen(name: str, options: dict[str, Any] | None = None, raw: Tensor | None = None) -> tuple[set[Any], ...]:
    """What a miner chooses: one set of triplets, or a set of positive and a set of negative pairs."""
    indices = [each.tolist() for each in MINERS.build(name, options or {})(unit_rows(draw() if raw is None else raw), LABELS)]
    return ({*zip(*indices, strict=True)},) if len(indices) == 3 else ({*zip(*indices[:2], strict=True)}, {*zip(*indices[2:], strict=True)})


def test_batch_hard_takes_the_farthest_positive_and_the_nearest_negative() -> None:
    b = Loops(draw(), LABELS)
    anchors = [a for a in b.rows if b.positives(a)]
    expected = {(a, max(b.positives(a), key=b.d[a].__getitem__), min(b.negatives(a), key=b.d[a].__getitem__)) for a in anchors}
    assert chosen("batch_hard") == (expected,)


@pytest.mark.parametrize("negatives", ["hard", "semi_hard"])
def test_easy_positive_takes_the_nearest_positive(negatives: str) -> None:
    b = Loops(draw(), LABELS)
    near, far = set(), set()
    for a in b.rows:
        if b.positives(a):
            p = min(b.positives(a), key=b.d[a].__getitem__)
            allowed = [n for n in b.negatives(a) if negatives == "hard" or b.d[a][n] > b.d[a][p]]
            if allowed:
                near.add((a, p))
                far.add((a, min(allowed, key=b.d[a].__getitem__)))
    assert chosen("easy_positive", {"negatives": negatives}) == (near, far)


@pytest.mark.parametrize("kind", ["all", "hard", "semi_hard"])
def test_triplet_margin_takes_what_violates_the_margin(kind: str) -> None:
    b = Loops(draw(), LABELS)
    gaps = {(a, p, n): b.d[a][n] - b.d[a][p] for a, p, n in b.triplets}
    low, high = {"all": (-9.0, 0.3), "hard": (-9.0, 0.0), "semi_hard": (0.0, 0.3)}[kind]
    assert chosen("triplet_margin", {"margin": 0.3, "kind": kind}) == ({triplet for triplet, gap in gaps.items() if low < gap <= high},)


def test_pair_margin_takes_far_positives_and_near_negatives() -> None:
    b = Loops(draw(), LABELS)
    expected = {(a, p) for a, p in b.pairs if b.d[a][p] > 1.2}, {(a, n) for a, n in b.apart if b.d[a][n] < 1.1}
    assert all(expected)
    assert chosen("pair_margin", {"positive_margin": 1.2, "negative_margin": 1.1}) == expected


def test_multi_similarity_takes_pairs_that_compete() -> None:
    b = Loops(draw(), LABELS)
    far = {(a, n) for a, n in b.apart if b.positives(a) and b.s[a][n] + 0.1 > min(b.s[a][p] for p in b.positives(a))}
    near = {(a, p) for a, p in b.pairs if b.s[a][p] - 0.1 < max(b.s[a][n] for n in b.negatives(a))}
    positives, negatives = chosen("multi_similarity", {"epsilon": 0.1})
    assert positives == near and {(a, n) for a, n in negatives if b.positives(a)} == far


def test_hardest_share_takes_the_farthest_positives_and_the_nearest_negatives() -> None:
    b = Loops(draw(), LABELS)
    positives, negatives = chosen("hardest_share", {"share": 0.25})
    assert len(positives) == -(-len(b.pairs) // 4) and len(negatives) == -(-len(b.apart) // 4)
    assert min(b.d[a][p] for a, p in positives) >= max(b.d[a][p] for a, p in {*b.pairs} - positives) - 1e-9
    assert max(b.d[a][n] for a, n in negatives) <= min(b.d[a][n] for a, n in {*b.apart} - negatives) + 1e-9


def test_angular_takes_triplets_with_a_wide_angle_at_the_negative() -> None:
    b, z = Loops(draw(), LABELS), unit_rows(draw())
    wide = {(a, p, n) for a, p, n in b.triplets if (z[a] - z[p]).norm() / (2 * (z[n] - (z[a] + z[p]) / 2).norm()) > tan(radians(35))}
    assert 0 < len(wide) < len(b.triplets)
    assert chosen("angular", {"degrees": 35.0}) == (wide,)


def test_distance_weighted_draws_triplets_within_its_reach() -> None:
    b = Loops(draw(), LABELS)
    (triplets,) = chosen("distance_weighted", {"farthest": 1.3})
    assert triplets and triplets <= {(a, p, n) for a, p, n in b.triplets if b.d[a][n] < 1.3}


def test_a_miner_changes_what_a_loss_looks_at() -> None:
    raw, b = draw(), Loops(draw(), LABELS)
    mined = objective("triplet_margin", {"margin": 0.2}, miner=("batch_hard", {}))(raw, LABELS)
    ((*triplets,),) = chosen("batch_hard")
    assert mined.item() == pytest.approx(mean_of_hinges([0.2 + b.d[a][p] - b.d[a][n] for a, p, n in triplets]))
    assert mined.item() != pytest.approx(objective("triplet_margin")(raw, LABELS).item())


def test_random_triplets_are_those_of_the_seed_and_leave_the_global_generator_alone() -> None:
    metric = objective("triplet_margin", miner=("distance_weighted", {}))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = [metric(draw(), LABELS, seed).item() for seed in (1, 2, 3)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert [metric(draw(), LABELS, seed).item() for seed in (1, 2, 3)] == one
    assert len(set(one)) > 1


# Parameters


@pytest.mark.parametrize("name", sorted(PER_CLASS))
def test_parameters_are_those_of_the_seed_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (objective(name, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert name == "margin" or any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("name", "rows"), [("proxy_anchor", 4), ("proxy_nca", 4), ("soft_triple", 4 * 4)])
def test_proxies_have_unit_length_on_average(name: str, rows: int) -> None:
    (proxies,) = objective(name, embedding_dim=256).parameters()
    lengths = (proxies.T if name == "soft_triple" else proxies).norm(dim=1)
    assert lengths.shape == (rows,) and lengths.mean().item() == pytest.approx(1.0, abs=0.1)


def test_a_boundary_can_be_one_for_all_classes() -> None:
    assert objective("margin", {"per_class": False}).loss.beta.shape == (1,)
    assert objective("margin").loss.beta.shape == (4,)


@pytest.mark.parametrize("name", sorted(PER_CLASS))
def test_class_ids_may_come_in_any_order_and_more_than_once(name: str) -> None:
    shuffled = objective(name, class_ids=torch.tensor([9, 3, 6, 5, 3]))
    assert torch.equal(shuffled(draw(), LABELS), objective(name)(draw(), LABELS))


@pytest.mark.parametrize("name", sorted(PER_CLASS))
@pytest.mark.parametrize("strange", [0, 4, 12])
def test_a_label_of_another_task_is_refused(name: str, strange: int) -> None:
    labels = LABELS.clone()
    labels[2] = strange
    with pytest.raises(ValueError, match=rf"'{name}' has parameters for the classes \[3, 5, 6, 9\] of the task.*labels \[{strange}\]"):
        objective(name)(draw(), labels)


@pytest.mark.parametrize("name", sorted(set(METRIC_LOSSES) - PER_CLASS))
def test_a_loss_without_parameters_takes_any_labels(name: str) -> None:
    torch.testing.assert_close(objective(name)(draw(), LABELS + 40), objective(name)(draw(), LABELS))


# Memory


@pytest.mark.parametrize("name", sorted(WITH_MEMORY))
def test_the_first_batch_is_compared_with_itself_alone(name: str) -> None:
    torch.testing.assert_close(objective(name, memory=30)(draw().float(), LABELS), objective(name)(draw().float(), LABELS))


def test_a_batch_is_compared_with_the_last_rows_and_no_row_with_itself() -> None:
    metric = objective("contrastive", {"positive_margin": 0.1, "negative_margin": 1.2}, memory=22)
    batches = [draw(seed).float() for seed in range(4)]
    values = [metric(raw, LABELS).item() for raw in batches]
    for step, raw in enumerate(batches):
        seen = torch.cat(batches[: step + 1])[-22:]
        labels = LABELS.repeat(step + 1)[-22:]
        d = torch.cdist(unit_rows(raw), unit_rows(seen))
        own = torch.arange(len(raw))[:, None] + len(seen) - len(raw) == torch.arange(len(seen))
        same = LABELS[:, None] == labels
        near, far = (d[same & ~own] - 0.1).tolist(), (1.2 - d[~same]).tolist()
        assert values[step] == pytest.approx(mean_of_hinges(near) + mean_of_hinges(far), rel=1e-5), step


@pytest.mark.parametrize("name", sorted(WITH_MEMORY))
def test_evaluation_neither_reads_nor_writes_the_memory(name: str) -> None:
    metric = objective(name, memory=30)
    metric(draw(1).float(), LABELS)
    before = {key: value.clone() for key, value in metric.state_dict().items()}
    metric.eval()
    torch.testing.assert_close(metric(draw().float(), LABELS), objective(name)(draw().float(), LABELS))
    assert all(torch.equal(before[key], value) for key, value in metric.state_dict().items())


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_a_memory_that_was_saved_goes_on_as_if_it_had_not_been(batches: int) -> None:
    whole, resumed = (objective("multi_similarity", memory=30, miner=("distance_weighted", {})) for _ in range(2))
    for seed in range(batches):
        whole(draw(seed).float(), LABELS, seed)
    resumed.load_state_dict(whole.state_dict())
    for seed in range(batches, batches + 4):
        assert torch.equal(resumed(draw(seed).float(), LABELS, seed), whole(draw(seed).float(), LABELS, seed))


def test_a_batch_larger_than_the_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'supcon': a batch has 9 rows, but the memory keeps 8; set ranking.metric.memory"):
        objective("supcon", memory=8)(draw(), LABELS)


# Names


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("contrastive", {"negative_margn": 1}, "Did you mean 'negative_margin'"),
        ("contrastive", {"distance": "cosine"}, "'euclidean' or 'squared'"),
        ("triplet_margin", {"margin": -0.1}, "greater than or equal to 0"),
        ("supcon", {"temperature": 0}, "greater than 0"),
        ("supcon", {"temperature": float("nan")}, "finite"),
        ("angular", {"degrees": 90}, "less than 90"),
        ("soft_triple", {"centers": 0}, "greater than or equal to 1"),
        ("ranked_list", {"temperature": 50}, "less than or equal to 5"),
        ("circle", {"margin": 1.5}, "less than or equal to 1"),
    ],
)
def test_a_misspelt_or_impossible_option_is_refused(name: str, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        METRIC_LOSSES.resolve(name, options)


def test_the_names_with_a_property_are_names_of_losses() -> None:
    for names in (PER_CLASS, ON_RAW_ROWS, WITHOUT_MINER, WITH_MEMORY):
        assert names and names < set(METRIC_LOSSES)


def test_a_memory_is_offered_where_the_library_knows_one() -> None:
    known = library.library().losses.CrossBatchMemory.supported_losses()
    assert all(type(objective(name).loss).__name__ in known for name in WITH_MEMORY)


def test_the_library_waits_until_a_part_of_it_is_built() -> None:
    tree = ast.parse(Path(library.__file__).read_text())
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom) and "metric_learning" in (node.module or "")]
    assert "from pytorch_metric_learning import" in ast.unparse(tree)


def test_the_how_to_names_every_loss_and_miner_and_what_they_take() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "ranking-losses.md").read_text()
    rows = {row[0].strip("` "): row for row in (line.strip("|").split("|") for line in text.splitlines()) if row[0].startswith(" `")}
    assert set(rows) == set(METRIC_LOSSES)
    assert {name for name, row in rows.items() if row[2].strip() != "-"} == PER_CLASS
    assert {name for name, row in rows.items() if row[3].strip() == "-"} == WITHOUT_MINER
    assert {name for name, row in rows.items() if row[4].strip() == "yes"} == WITH_MEMORY
    assert all(f"`{name}`" in text.partition("## Miners")[2] for name in MINERS)
