"""Policies, scopes and directions of cross-modal retrieval, held against loops over every query, item and tie."""

import numpy as np
import pytest

from perdure.index import ScoreCurve, TaskRouter, View
from perdure.metrics.ranks import TIE
from perdure.metrics.retrieval import pair_metrics, retrieval_metrics
from perdure.records import EncoderRef, Task
from perdure.retrieval.compensation import QueryDrift, mean_drift
from perdure.retrieval.cross_modal import (
    CROSS_MODAL_DEFINITIONS,
    DIRECTIONS,
    KS,
    POLICIES,
    SCOPES,
    cross_modal_drift,
    cross_modal_recalls,
)
from perdure.retrieval.evaluation import SplitEmbeddings
from perdure.retrieval.routes import Routes

TASKS, PER_TASK, DIM = 3, 7, 6
ROWS = np.arange(10, 10 + TASKS * PER_TASK)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def tasks() -> list[Task]:
    """Rows in no order, as a stream may give them."""
    order = np.random.default_rng(5).permutation(ROWS)
    cut = [order[t * PER_TASK : (t + 1) * PER_TASK] for t in range(TASKS)]
    return [Task(t, f"task {t}", (), np.zeros(0, np.int64), rows, rows) for t, rows in enumerate(cut)]


def version(seed: int, *, coarse: bool = False, noise: float = 0.6) -> SplitEmbeddings:
    """Pictures with one to three captions, one of them with none; `coarse` makes many scores equal."""
    rng = np.random.default_rng(seed)
    text_of = np.repeat(np.arange(len(ROWS)), np.arange(len(ROWS)) % 4)

    def draw(count: int):
        return unit(rng.integers(-1, 2, (count, DIM)) + 0.25) if coarse else unit(rng.standard_normal((count, DIM)))

    centre = draw(len(ROWS))
    return SplitEmbeddings(ROWS, unit(centre + noise * draw(len(ROWS))), unit(centre[text_of] + noise * draw(len(text_of))), text_of)


def hops(seed: int = 40) -> list[QueryDrift]:
    rng = np.random.default_rng(seed)
    return [QueryDrift(*(0.3 * rng.standard_normal((2, DIM))).astype(np.float32)) for _ in range(TASKS - 1)]


REFS = [EncoderRef("drawn", number + 1) for number in range(TASKS)]
FOLD = {int(row): int(row) % 2 for row in ROWS}


def routes(seed: int = 60) -> Routes:
    """Routers with opinions drawn at random: of every version on every task, for pictures and captions, another one in each fold."""
    rng = np.random.default_rng(seed)

    def view(ref: EncoderRef, modality) -> View:
        weight, bias = rng.standard_normal((TASKS, DIM)).astype(np.float32), rng.standard_normal(TASKS).astype(np.float32)
        return View(ref, weight, bias, np.arange(TASKS), np.arange(9, 9 + TASKS), modality)

    routers = [[TaskRouter(tuple(view(ref, asks) for ref in REFS for asks in ("image", "text"))) for _ in range(2)] for _ in range(TASKS)]
    return Routes(REFS, routers, FOLD)


def side(versions, task, number: int, direction: str):
    """(queries, their names, items, their names) of a task by one version."""
    part = versions[number].of(task.query)
    pictures, captions = (part.image, part.rows), (part.text, part.rows[part.text_of])
    (queries, names), (items, item_names) = (pictures, captions) if direction == "i2t" else (captions, pictures)
    return queries, names, items, item_names


def worth_in_loops(versions, stream, fold: int, direction: str, s: int):
    """What a score in the list of task s is worth to a query of a fold: from the ten best hits of the queries of the other fold."""
    queries, names, items, item_names = side(versions, stream[s], s, direction)
    pairs = []
    for query, name in zip(queries, names, strict=True):
        if FOLD[int(name)] != fold:
            hits = sorted(zip(items @ query, item_names, strict=True), key=lambda hit: -hit[0])[:10]
            pairs += [(score, item_name == name) for score, item_name in hits]
    curve = ScoreCurve.fit(np.array([score for score, _ in pairs], np.float32), np.array([right for _, right in pairs], bool))
    return lambda score: float(curve(np.array(score))) + 1e-9 * score


def in_loops(versions, stream, drifts, policy: str, scope: str, direction: str, t: int, j: int, k: int) -> float | None:
    """Recall@K of task j after task t, one query and one item at a time."""
    ranks = []
    for q, name in enumerate(side(versions, stream[j], t, direction)[1]):
        right, wrong = [], []
        fold = FOLD[int(name)]
        if scope == "unknown_routed":
            seen = {REFS[s]: side(versions, stream[j], s, direction)[0][q : q + 1] for s in range(t + 1)}
            asks = "image" if direction == "i2t" else "text"
            share = routes().routers[t][fold].shares(seen, range(t + 1), asks)[0] ** (1 / 3)
        for s in range(t + 1) if scope != "known" else [j]:
            maker = t if policy == "reindex" else s
            asker = s if policy == "versioned" else t
            query = side(versions, stream[j], asker, direction)[0][q].astype(np.float64)
            if policy == "keep_compensated" and s < t:
                for hop in drifts[s:t]:
                    query = query - (hop.image if direction == "i2t" else hop.text)
                query = query / np.linalg.norm(query)
            _, _, items, item_names = side(versions, stream[s], maker, direction)
            scores = items.astype(np.float64) @ query
            tie = TIE
            if scope == "unknown" and policy != "reindex":
                deviation = max(scores.std(), 1e-3)
                scores, tie = (scores - scores.mean()) / deviation, TIE / deviation
            if scope == "unknown_routed":
                worth = worth_in_loops(versions, stream, fold, direction, s)
                counts = [(share[s] * worth(score), share[s] * worth(score + TIE)) for score in scores]
                right += [(count, 0) for (count, _), item_name in zip(counts, item_names, strict=True) if item_name == name]
                wrong += [(nearly, 0) for (_, nearly), item_name in zip(counts, item_names, strict=True) if item_name != name]
                continue
            for score, item_name in zip(scores, item_names, strict=True):
                (right if item_name == name else wrong).append((score, tie))
        if right:
            best = max(score for score, _ in right)
            ranks.append(1 + sum(score + tie >= best for score, tie in wrong))
    return float(np.mean([rank <= k for rank in ranks])) if ranks else None


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct scores", "many ties"])
def test_every_number_equals_loops_over_queries_and_items(coarse: bool) -> None:
    versions, stream, drifts = [version(seed, coarse=coarse) for seed in range(TASKS)], tasks(), hops()
    found = cross_modal_recalls(versions, stream, drifts, routes())
    seen = 0
    for policy, by_scope in found.items():
        for scope, by_direction in by_scope.items():
            for direction, by_k in by_direction.items():
                for k in KS:
                    matrix = by_k[f"recall@{k}"]["matrix"]
                    for t in range(TASKS):
                        for j in range(TASKS):
                            expected = in_loops(versions, stream, drifts, policy, scope, direction, t, j, k) if j <= t else None
                            assert matrix[t][j] == pytest.approx(expected), (policy, scope, direction, k, t, j)
                            seen += expected is not None
    assert seen == (4 * 3 - 1 + 1) * 2 * 3 * 6


def test_every_policy_scope_and_direction_is_there_and_is_defined() -> None:
    found = cross_modal_recalls([version(seed) for seed in range(TASKS)], tasks(), hops(), routes())
    assert tuple(found) == POLICIES
    of_policy = {"reindex": SCOPES[:2], "versioned": SCOPES}
    assert {policy: tuple(scopes) for policy, scopes in found.items()} == {policy: of_policy.get(policy, SCOPES[:3]) for policy in POLICIES}
    assert all(tuple(by_scope[scope]) == DIRECTIONS for by_scope in found.values() for scope in by_scope)
    assert "unknown_routed" not in cross_modal_recalls([version(seed) for seed in range(TASKS)], tasks(), hops())["versioned"]
    assert {f"cross_modal.{word}" for word in (*POLICIES, *SCOPES)} <= CROSS_MODAL_DEFINITIONS.keys()
    assert "keep_compensated" not in cross_modal_recalls([version(seed) for seed in range(TASKS)], tasks(), None)


def test_the_known_scope_is_what_the_metrics_of_a_task_say() -> None:
    versions, stream = [version(seed) for seed in range(TASKS)], tasks()
    found = cross_modal_recalls(versions, stream, None)["reindex"]["known"]
    for t in range(TASKS):
        for j in range(t + 1):
            part = versions[t].of(stream[j].query)
            assert part.text is not None
            pairs = pair_metrics(part.text, part.image, part.text_of)
            i2t = retrieval_metrics(part.image, part.text, part.rows, part.rows[part.text_of])
            for k in KS:
                assert found["t2i"][f"recall@{k}"]["matrix"][t][j] == pytest.approx(pairs[f"recall@{k}"])
                assert found["i2t"][f"recall@{k}"]["matrix"][t][j] == pytest.approx(i2t[f"recall@{k}"])


def test_an_encoder_that_does_not_move_makes_all_policies_equal() -> None:
    """But for the standardised merge, which compares each task's items with their own kind even then."""
    zero = [QueryDrift(np.zeros(DIM, np.float32), np.zeros(DIM, np.float32))] * (TASKS - 1)
    found = cross_modal_recalls([version(3)] * TASKS, tasks(), zero)
    for policy in POLICIES:
        assert found[policy]["known"] == found["reindex"]["known"]
        if policy != "reindex":
            assert found[policy]["unknown_raw"] == found["reindex"]["unknown"]
            assert found[policy]["unknown"] == found["keep"]["unknown"]


def test_more_to_search_through_finds_no_more() -> None:
    found = cross_modal_recalls([version(seed) for seed in range(TASKS)], tasks(), hops(), routes())
    for policy, by_scope in found.items():
        for scope in by_scope.keys() - {"known"}:
            for direction in DIRECTIONS:
                for k in KS:
                    known, more = (by_scope[one][direction][f"recall@{k}"]["matrix"] for one in ("known", scope))
                    pairs = [(more[t][j], known[t][j]) for t in range(TASKS) for j in range(t + 1)]
                    assert all(one <= other for one, other in pairs), (policy, scope)


def test_versioned_search_of_a_known_task_never_changes_after_it_was_learned() -> None:
    found = cross_modal_recalls([version(seed) for seed in range(TASKS)], tasks(), hops())
    for by_k in found["versioned"]["known"].values():
        for one in by_k.values():
            assert all(one["matrix"][t][j] == one["matrix"][j][j] for t in range(TASKS) for j in range(t + 1))


def test_compensation_is_exact_where_every_unit_embedding_moves_by_the_same_vector() -> None:
    """Unit rows stay unit rows under one translation only where all have the same component along it, so that is how they are drawn."""
    along, shift = np.zeros(DIM), np.zeros(DIM)
    along[0], shift[0] = -0.3, 0.6
    still = version(3, noise=1.5)

    def on_the_slice(rows):
        rest = rows.copy()
        rest[:, 0] = 0
        return (along + np.sqrt(1 - 0.3**2) * unit(rest)).astype(np.float32)

    old = SplitEmbeddings(ROWS, on_the_slice(still.image), on_the_slice(still.text), still.text_of)
    moved = SplitEmbeddings(ROWS, old.image + shift.astype(np.float32), old.text + shift.astype(np.float32), old.text_of)
    assert np.allclose(np.linalg.norm(moved.image, axis=1), 1, atol=1e-6)
    drift = [QueryDrift(mean_drift(old.image, moved.image), mean_drift(old.text, moved.text))]
    found = cross_modal_recalls([old, moved], tasks()[:2], drift)
    for scope in SCOPES[:3]:
        for direction in DIRECTIONS:
            for k in KS:
                compensated, versioned = (found[policy][scope][direction][f"recall@{k}"] for policy in ("keep_compensated", "versioned"))
                assert compensated == versioned
    assert found["keep"]["unknown_raw"] != found["versioned"]["unknown_raw"]


def test_a_task_whose_pictures_have_no_captions_has_no_number_and_takes_nothing_from_the_others() -> None:
    whole = [version(seed) for seed in range(TASKS)]
    stream = tasks()
    silent = set(stream[1].query.tolist())
    spoken = [one.of(ROWS) for one in whole]
    for number, one in enumerate(spoken):
        kept = np.array([int(ROWS[at]) not in silent for at in one.text_of])
        spoken[number] = SplitEmbeddings(ROWS, one.image, one.text[kept], one.text_of[kept])
    found, before = (cross_modal_recalls(each, stream, hops()) for each in (spoken, whole))
    for policy in POLICIES:
        for direction in DIRECTIONS:
            matrix, other = (each[policy]["known"][direction]["recall@1"]["matrix"] for each in (found, before))
            assert matrix[2][1] is None and matrix[2][0] == other[2][0]
        assert all(value is not None for value in (found[policy]["unknown"]["t2i"]["recall@5"]["matrix"][2][j] for j in (0, 2)))


def test_routers_that_know_the_task_find_as_much_as_if_it_were_told() -> None:
    """Each task along an axis of its own: every version points there, and every view reads it off."""
    stream, axis = tasks(), np.eye(DIM, dtype=np.float32)
    task_of = {int(row): task.index for task in stream for row in task.query}

    def told(number: int) -> SplitEmbeddings:
        one = version(number, noise=1.0)
        place = np.array([task_of[int(row)] for row in ROWS])
        return SplitEmbeddings(
            ROWS, unit(0.1 * one.image + 5 * axis[place]), unit(0.1 * one.text + 5 * axis[place[one.text_of]]), one.text_of
        )

    weight, many = 1e4 * axis[:TASKS], np.full(TASKS, 9)
    sure = [View(ref, weight, np.zeros(TASKS, np.float32), np.arange(TASKS), many, asks) for ref in REFS for asks in ("image", "text")]
    knowing = Routes(REFS, [[TaskRouter(tuple(sure))] * 2] * TASKS, FOLD)
    found = cross_modal_recalls([told(seed) for seed in range(TASKS)], stream, None, knowing)["versioned"]
    assert found["unknown_routed"] == found["known"]


def test_drift_is_told_of_earlier_tasks_in_both_modalities() -> None:
    versions, stream = [version(seed) for seed in range(TASKS)], tasks()
    found = cross_modal_drift(versions, stream)
    assert set(found) == {"image", "text"}
    for modality in found:
        matrix = found[modality]["displacement"]["matrix"]
        for t in range(TASKS):
            for j in range(TASKS):
                if j >= t:
                    assert matrix[t][j] is None
                    continue
                before, after = (getattr(versions[v].of(stream[j].query), modality).astype(float) for v in (j, t))
                expected = np.mean([np.sqrt(sum((a - b) ** 2)) for a, b in zip(before, after, strict=True)])
                assert matrix[t][j] == pytest.approx(expected)
                assert found[modality]["cka"]["matrix"][t][j] is not None
    still = cross_modal_drift([versions[0]] * TASKS, stream)
    assert still["text"]["displacement"]["matrix"][2][:2] == [0, 0]
    assert still["image"]["cka"]["matrix"][2][:2] == pytest.approx([1, 1])


def test_embeddings_without_captions_are_refused() -> None:
    one = version(0)
    blind = SplitEmbeddings(one.rows, one.image, None, np.zeros(0, np.int64))
    with pytest.raises(ValueError, match="these embeddings have none"):
        cross_modal_recalls([blind] * TASKS, tasks(), None)
