import re
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from perdure.checks import check, resolved
from perdure.config import RunConfig, parse
from perdure.encoders import GrowingClassifier, build_encoder
from perdure.errors import ConfigError
from perdure.identity import fingerprint, first_task_fingerprint
from perdure.losses import batch_triplet, bidirectional_triplet, cross_entropy_over, unit_rows
from perdure.losses.metric import METRIC_LOSSES, MINERS, WITHOUT_MINER
from perdure.losses.metric.objective import MetricObjective
from perdure.records import Embedded
from perdure.strategies import STRATEGIES, Ranking, Strategy, TaskContext
from perdure.strategies.metric import MetricPart


class OnlyAClassifier:
    """All that the ranking terms ask of an encoder."""

    def __init__(self, num_classes: int) -> None:
        self.classifier = GrowingClassifier(4)
        self.classifier.grow(num_classes)


def batch(*, text: bool) -> Embedded:
    generator = torch.Generator().manual_seed(0)
    image, captions = (3 * torch.randn(8, 4, generator=generator) for _ in range(2))
    return Embedded(labels=torch.arange(8) % 4 + 2, image=image, text=captions if text else None)


def test_the_terms_are_the_weighted_losses_on_unit_rows() -> None:
    encoder, embedded, classes = OnlyAClassifier(6), batch(text=True), torch.tensor([2, 3, 4, 5])
    ranking = Ranking(triplet=2, cross_entropy=3, pairs=4, margin=0.3, pair_margin=0.1, mining="hard", pair_mining="hard")
    terms = ranking.terms(encoder, embedded, classes)  # type: ignore[arg-type]
    assert embedded.text is not None
    image, text = unit_rows(embedded.image), unit_rows(embedded.text)
    assert list(terms) == ["triplet", "cross_entropy", "pairs"]
    torch.testing.assert_close(terms["triplet"], 2 * batch_triplet(image, embedded.labels, margin=0.3, mining="hard"))
    logits = encoder.classifier(embedded.image)
    torch.testing.assert_close(terms["cross_entropy"], 3 * cross_entropy_over(logits, embedded.labels, classes))
    torch.testing.assert_close(terms["pairs"], 4 * bidirectional_triplet(image, text, margin=0.1, mining="hard"))


def test_a_term_of_weight_zero_is_left_out() -> None:
    terms = Ranking(cross_entropy=0, pairs=0).terms(OnlyAClassifier(6), batch(text=True), None)  # type: ignore[arg-type]
    assert list(terms) == ["triplet"]


def test_without_text_there_are_no_pairs() -> None:
    terms = Ranking().terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]
    assert list(terms) == ["triplet", "cross_entropy"]


def test_captions_of_the_same_class_can_be_spared() -> None:
    encoder, embedded = OnlyAClassifier(6), batch(text=True)
    every, sparing = (
        Ranking(pair_negatives=which).terms(encoder, embedded, None)["pairs"]  # type: ignore[arg-type]
        for which in ("all", "other_classes")
    )
    assert embedded.text is not None
    expected = bidirectional_triplet(unit_rows(embedded.image), unit_rows(embedded.text), same=embedded.labels)
    torch.testing.assert_close(sparing, expected)
    assert float(every) != float(sparing)


def test_an_objective_that_would_learn_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be learned"):
        Ranking(triplet=0, cross_entropy=0, pairs=0)
    with pytest.raises(ValueError, match="the batch has no text"):
        Ranking(triplet=0, cross_entropy=0).terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"margin": -0.1}, {"triplet": float("nan")}, {"pairs": float("inf")}, {"mining": "soft"}, {"pear": 1}])
def test_weights_out_of_range_and_unknown_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Ranking.model_validate(wrong)


@pytest.mark.parametrize(("cross_entropy", "mining"), [(1.0, "hard"), (0.0, "all")])
def test_triplets_are_hard_beside_a_classifier_and_all_without_one(cross_entropy: float, mining: str) -> None:
    auto, chosen = (
        Ranking(cross_entropy=cross_entropy, mining=which).terms(OnlyAClassifier(6), batch(text=False), None)["triplet"]  # type: ignore[arg-type]
        for which in ("auto", mining)
    )
    assert torch.equal(auto, chosen)


def test_a_run_configuration_reaches_the_ranking_of_every_strategy() -> None:
    for name in set(STRATEGIES) - {"domain_uncertainty_hashing"}:
        assert STRATEGIES.resolve(name, {"ranking": {"margin": 0.25}})["ranking"] == Ranking(margin=0.25)


def test_a_strategy_without_ranking_terms_takes_none_rather_than_ignore_them() -> None:
    with pytest.raises(ConfigError, match=r"ranking: no such option"):
        STRATEGIES.build("domain_uncertainty_hashing", {"ranking": {"margin": 0.25}})


# A metric loss by name


def with_metric(metric: Any, **weights: float) -> Ranking:
    return Ranking.model_validate({"metric": metric, **weights})


@pytest.mark.parametrize("name", METRIC_LOSSES)
def test_a_metric_is_one_more_term_under_its_own_name(name: str) -> None:
    encoder, embedded, classes = OnlyAClassifier(6), batch(text=True), torch.tensor([2, 3, 4, 5])
    ranking = with_metric({"name": name, "weight": 0.5}, triplet=0)
    metric = ranking.metric_objective(classes, 4, 1)
    terms = ranking.terms(encoder, embedded, classes, metric)  # type: ignore[arg-type]
    assert list(terms) == ["cross_entropy", "pairs", name]
    expected = MetricObjective(name, {}, class_ids=classes, embedding_dim=4, seed=1)(embedded.image, embedded.labels)
    torch.testing.assert_close(terms[name], 0.5 * expected)


def test_the_miner_the_memory_and_the_options_reach_the_loss() -> None:
    metric = {"name": "contrastive", "negative_margin": 0.7, "miner": {"name": "pair_margin", "negative_margin": 0.6}, "memory": 16}
    objective = with_metric(metric).metric_objective(torch.arange(6), 4, 0)
    assert objective is not None and objective.queue is not None
    assert (objective.loss.neg_margin, objective.miner.neg_margin, objective.queue.memory_size) == (0.7, 0.6, 16)
    assert objective.queue.miner is objective.miner


def test_random_miners_draw_by_the_seed_of_the_step() -> None:
    ranking = with_metric({"name": "triplet_margin", "miner": "distance_weighted"}, triplet=0, cross_entropy=0)
    metric = ranking.metric_objective(torch.arange(6), 4, 0)

    def term(seed: int) -> float:
        drawn = batch(text=False)
        embedded = Embedded(drawn.labels.repeat(2), torch.cat([drawn.image, drawn.image.flip(0)]), seed=seed)
        return ranking.terms(OnlyAClassifier(6), embedded, None, metric)["triplet_margin"].item()  # type: ignore[arg-type]

    values = [term(seed) for seed in range(6)]
    assert values == [term(seed) for seed in range(6)]
    assert len(set(values)) > 1


def test_without_a_metric_or_with_weight_zero_nothing_is_made() -> None:
    for ranking in (Ranking(), with_metric({"name": "proxy_anchor", "weight": 0})):
        assert ranking.metric_objective(torch.arange(6), 4, 0) is None
        terms = ranking.terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]
        assert list(terms) == ["triplet", "cross_entropy"]


@pytest.mark.parametrize(("name", "mixed"), [("supcon", True), ("proxy_anchor", False)])
def test_made_up_pictures_take_part_in_a_metric_without_parameters_for_each_class(name: str, mixed: bool) -> None:
    """They are of classes 0 and 1, the task has 2 to 5."""
    drawn, made_up, old = batch(text=False), torch.randn(4, 4, generator=torch.Generator().manual_seed(9)), torch.tensor([0, 1, 0, 1])
    embedded = Embedded(drawn.labels, drawn.image, synthetic=made_up, synthetic_labels=old)
    ranking = with_metric(name, triplet=0, cross_entropy=0)
    objective = ranking.metric_objective(torch.arange(2, 6), 4, 1)
    assert objective is not None
    term = ranking.terms(OnlyAClassifier(6), embedded, None, objective)[name]  # type: ignore[arg-type]
    rows = (torch.cat([drawn.image, made_up]), torch.cat([drawn.labels, old])) if mixed else (drawn.image, drawn.labels)
    assert torch.equal(term, objective(*rows))


def test_a_metric_alone_is_something_to_learn_but_not_with_weight_zero() -> None:
    nothing_else = {"triplet": 0.0, "cross_entropy": 0.0, "pairs": 0.0}
    assert with_metric("circle", **nothing_else).metric is not None
    with pytest.raises(ValidationError, match="nothing would be learned"):
        with_metric({"name": "circle", "weight": 0}, **nothing_else)


def test_a_metric_that_nobody_began_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'circle' has a weight, but nobody began it"):
        with_metric("circle").terms(OnlyAClassifier(6), batch(text=False), None)  # type: ignore[arg-type]


def test_a_metric_is_written_out_with_its_defaults() -> None:
    part = MetricPart.model_validate({"name": "proxy_anchor", "alpha": "16", "miner": "triplet_margin"})
    plain = {
        "name": "proxy_anchor",
        "weight": 1.0,
        "miner": {"name": "triplet_margin", "margin": 0.2, "kind": "all"},
        "memory": None,
        "margin": 0.1,
        "alpha": 16.0,
    }
    assert part.model_dump(mode="json") == plain
    assert MetricPart.model_validate(plain) == part
    assert MetricPart.model_validate("proxy_anchor").options == METRIC_LOSSES.resolve("proxy_anchor", {})


def test_no_option_of_a_loss_or_a_miner_has_the_name_of_one_of_ours() -> None:
    for name in METRIC_LOSSES:
        assert not METRIC_LOSSES.schema(name).model_fields.keys() & MetricPart.model_fields.keys()
    assert all("name" not in MINERS.schema(name).model_fields for name in MINERS)


@pytest.mark.parametrize(
    ("metric", "complaint"),
    [
        ("proxi_anchor", r"ranking.metric: .*no metric loss named 'proxi_anchor'.* Did you mean 'proxy_anchor'\?"),
        ({"weight": 2}, r"ranking.metric.name: this option is required"),
        ({"name": "circle", "wieght": 2}, r"circle: wieght: no such option. Did you mean 'weight'\?"),
        (
            {"name": "circle", "scael": 2, "margin": -1},
            r"scael: no such option. Did you mean 'scale'\?; margin: .*greater than or equal to 0",
        ),
        ({"name": "circle", "weight": -1}, r"ranking.metric.weight: .*greater than or equal to 0"),
        ({"name": "circle", "miner": "batch_hrad"}, r"ranking.metric.miner: .*Did you mean 'batch_hard'\?"),
        ({"name": "circle", "miner": {"name": "angular", "angle": 3}}, r"ranking.metric.miner: .*angle: no such option"),
        ({"name": "circle", "memory": 0}, r"ranking.metric.memory: .*greater than or equal to 1"),
        ({"name": "angular", "memory": 64}, r"angular cannot use a memory, those that can: circle, contrastive"),
        *(({"name": name, "miner": "batch_hard"}, rf"{name} chooses its pairs by itself") for name in sorted(WITHOUT_MINER)),
    ],
)
def test_a_wrong_metric_is_an_error_of_the_configuration(metric: Any, complaint: str) -> None:
    config = RunConfig.model_validate({"strategy": {"name": "l2", "ranking": {"metric": metric}}})
    (problem,) = check(config)
    assert problem.startswith("strategy.ranking.metric") and re.search(complaint, problem), problem


def test_a_metric_can_be_named_on_the_command_line() -> None:
    config = parse({}, ["strategy.ranking.metric.name=proxy_anchor", "strategy.ranking.metric.alpha=8", "strategy.ranking.triplet=0"])
    ranking = resolved(config).strategy.options["ranking"]
    assert ranking["metric"] == {"name": "proxy_anchor", "weight": 1.0, "miner": None, "memory": None, "margin": 0.1, "alpha": 8.0}


def test_a_run_without_a_metric_is_the_run_that_it_was_before_there_were_metrics() -> None:
    now = resolved(RunConfig())
    before = now.plain()
    assert before["strategy"]["ranking"].pop("metric") is None
    assert fingerprint(parse(before)) == fingerprint(now)
    assert first_task_fingerprint(parse(before)) == first_task_fingerprint(now)
    other = resolved(parse({}, ["strategy.ranking.metric=circle"]))
    assert fingerprint(other) != fingerprint(now) and first_task_fingerprint(other) != first_task_fingerprint(now)


def begun(name: str, metric: Any) -> tuple[Strategy, Any]:
    """A strategy at the start of its first task, of three classes, and the encoder."""
    options = {"embedding_dim": 8, "width": 4, "image_size": 16, "joint": {"hidden": 8} if name == "meta_sequential" else None}
    encoder = build_encoder("small_resnet", options, with_text=False, seed=0)
    strategy = STRATEGIES.build(name, {"ranking": {"metric": metric}})
    strategy.begin_task(encoder, TaskContext(0, torch.arange(3), seed=5))
    encoder.grow(num_classes=3)
    strategy.begin_training(encoder)
    return strategy, encoder


@pytest.mark.parametrize("metric", ["proxy_anchor", "supcon"])
@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if not strategy.own_objective])
def test_every_strategy_learns_with_it_and_names_it_among_what_is_trained(name: str, metric: str) -> None:
    strategy, encoder = begun(name, metric)
    assert isinstance(strategy.trained()["metric"], MetricObjective)
    labels = torch.arange(6) % 3
    images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    embedded = Embedded(labels, encoder(images)[0])
    term = strategy.loss_terms(encoder, embedded)[metric]
    torch.testing.assert_close(strategy.ranking_terms(encoder, embedded)[metric], term)
    torch.testing.assert_close(strategy.trained()["metric"](embedded.image, labels), term)


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if not strategy.own_objective])
def test_without_a_metric_a_strategy_trains_nothing_for_it(name: str) -> None:
    strategy, _ = begun(name, None)
    assert "metric" not in strategy.trained()


def test_a_run_with_separate_projections_is_the_run_that_it_was_before_there_was_a_choice() -> None:
    now = resolved(RunConfig())
    before = now.plain()
    assert before["encoder"].pop("projection") == "separate"
    assert fingerprint(parse(before)) == fingerprint(now)
    assert first_task_fingerprint(parse(before)) == first_task_fingerprint(now)
    other = resolved(parse({}, ["encoder.projection=shared"]))
    assert fingerprint(other) != fingerprint(now) and first_task_fingerprint(other) != first_task_fingerprint(now)


def test_negatives_can_be_those_of_the_same_task_alone() -> None:
    encoder, embedded = OnlyAClassifier(6), batch(text=True)
    tasks = torch.arange(8) // 4
    of_two = Embedded(embedded.labels, embedded.image, embedded.text, tasks=tasks)

    def pairs(which: str, seen: Embedded) -> torch.Tensor:
        return Ranking(pair_negatives=which).terms(encoder, seen, None)["pairs"]  # type: ignore[arg-type]

    assert embedded.text is not None
    expected = bidirectional_triplet(unit_rows(embedded.image), unit_rows(embedded.text), within=tasks)
    torch.testing.assert_close(pairs("within_task", of_two), expected)
    assert float(pairs("all", of_two)) != float(expected)
    assert torch.equal(pairs("within_task", embedded), pairs("all", embedded)), "a batch of one task has no others to leave out"
