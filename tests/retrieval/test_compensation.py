"""Query drift compensation: the equation, what is exact about it, and a release that asks for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perdure.errors import BadQuery, ConfigError, Corrupt, Incompatible, NotFound
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.registry import Registry, open_registry
from perdure.registry.manifest import release_from_plain, release_to_plain
from perdure.retrieval import next_release
from perdure.retrieval.compensation import QUERY_DRIFT, QueryDrift, asked, load_drifts, mean_drift

E1, E2, E3 = (EncoderRef("demo", version) for version in (1, 2, 3))
S1, S2, S3 = (SegmentRef("demo", version) for version in (1, 2, 3))
DIM = 4


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def rows(seed: int, n: int = 20):
    return unit(np.random.default_rng(seed).standard_normal((n, DIM)))


def drift(seed: int, *, text: bool = True) -> QueryDrift:
    image, words = (0.3 * np.random.default_rng(seed).standard_normal((2, DIM))).astype(np.float32)
    return QueryDrift(image, words if text else None)


def registry_with(folder: Path, *drifts: QueryDrift | None) -> Registry:
    """Three versions, each the child of the one before; versions 2 and 3 with the drifts that are given."""
    registry = open_registry(folder / "registry")
    for version, one in enumerate((None, *drifts), start=1):
        files: dict[str, Path | bytes] = {"weights.safetensors": f"weights {version}".encode()}
        if one is not None:
            one.save(folder / f"{version}.safetensors")
            files[QUERY_DRIFT] = folder / f"{version}.safetensors"
        registry.publish_encoder("demo", version, files, parent=EncoderRef("demo", version - 1) if version > 1 else None)
    return registry


def keep(*, compensate: bool = True) -> Release:
    release = None
    for task, (encoder, segment) in enumerate(((E1, S1), (E2, S2), (E3, S3))):
        release = next_release(
            "keep", release, encoder=encoder, segment=segment, id=f"demo@v{task + 1}", run="demo", task=task, compensate=compensate
        )
    assert release is not None
    return release


def test_the_mean_of_what_is_left_is_the_mean_of_the_older_embeddings() -> None:
    before, after = rows(0), rows(1)
    np.testing.assert_allclose((after - mean_drift(before, after)).mean(axis=0), before.mean(axis=0), atol=1e-6)
    assert mean_drift(before[:0], after[:0]).tolist() == [0.0] * DIM


def test_queries_less_the_drift_are_brought_to_unit_length_each_modality_by_its_own() -> None:
    one, queries = drift(0), rows(3)
    assert one.text is not None
    for modality, delta in (("image", one.image), ("text", one.text)):
        found = one.taken_from(queries, modality)
        np.testing.assert_allclose(found, unit(queries.astype(np.float64) - delta), atol=1e-6)
        assert found.dtype == np.float32
    assert one.taken_from(one.image[None], "image").tolist() == [[0.0] * DIM], "nothing is left to have a direction"


def test_a_translation_of_unit_rows_is_undone_and_one_before_they_are_normalised_only_on_average() -> None:
    rng = np.random.default_rng(0)
    rest = unit(np.concatenate([np.zeros((50, 1)), rng.standard_normal((50, DIM - 1))], axis=1))
    old = (np.sqrt(1 - 0.3**2) * rest - 0.3 * np.eye(DIM)[0]).astype(np.float32)
    new = old + np.float32(0.6) * np.eye(DIM, dtype=np.float32)[0]
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, atol=1e-6)
    exact = QueryDrift(mean_drift(old, new), None)
    np.testing.assert_allclose(exact.taken_from(new, "image"), old, atol=1e-6)
    before = rng.standard_normal((50, DIM)) * rng.uniform(0.5, 2, (50, 1))
    after = before + 0.8
    delta = QueryDrift(mean_drift(unit(before), unit(after)), None)
    left = np.linalg.norm(delta.taken_from(unit(after), "image") - unit(before), axis=1)
    assert left.max() > 0.05 and left.mean() < 0.8 * np.linalg.norm(unit(after) - unit(before), axis=1).mean()


def test_several_hops_add_up() -> None:
    both = QueryDrift.over([drift(0), drift(1)])
    np.testing.assert_allclose(both.image, drift(0).image + drift(1).image, atol=1e-7)
    assert both.text is not None and QueryDrift.over([drift(0), drift(1, text=False)]).text is None


def test_what_was_saved_is_read_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    for text in (True, False):
        drift(0, text=text).save(tmp_path / "drift")
        found = QueryDrift.load(tmp_path / "drift")
        assert np.array_equal(found.image, drift(0).image)
        assert (found.text is not None) == text
    (tmp_path / "drift").write_bytes(b"nothing")
    with pytest.raises(Corrupt, match="not the query drift"):
        QueryDrift.load(tmp_path / "drift")


def test_texts_need_a_drift_of_texts() -> None:
    with pytest.raises(BadQuery, match="no text tower"):
        drift(0, text=False).taken_from(rows(0), "text")


# A release that asks for it


def test_only_keep_compensates_and_only_where_queries_meet_vectors_of_an_older_encoder() -> None:
    assert keep().segments == (SegmentUse(S1, E1, E3, True), SegmentUse(S2, E2, E3, True), SegmentUse(S3, E3, E3))
    assert keep().compensated and not keep(compensate=False).compensated
    for policy in ("reindex", "versioned"):
        with pytest.raises(ConfigError, match=r"index\.compensate.*\n.*choose keep"):
            next_release(policy, None, encoder=E1, segment=S1, id="demo@v1", run="demo", task=0, compensate=True)


def test_a_release_of_before_there_was_compensation_is_read_and_written_as_it_was() -> None:
    plain = release_to_plain(keep(compensate=False))
    assert all(set(use) == {"segment", "made_by", "queried_by"} for use in plain["segments"])
    assert release_from_plain(plain) == keep(compensate=False)
    assert release_from_plain(release_to_plain(keep())) == keep()


def test_the_drifts_of_all_hops_since_a_segment_was_made_are_summed(tmp_path: Path) -> None:
    found = load_drifts(registry_with(tmp_path, drift(2), drift(3)), keep())
    assert set(found) == {0, 1}
    np.testing.assert_allclose(found[0].image, drift(2).image + drift(3).image, atol=1e-6)
    np.testing.assert_allclose(found[1].text, drift(3).text, atol=1e-7)


def test_each_segment_is_asked_in_its_own_space_and_each_query_by_its_modality() -> None:
    release, queries = keep(), rows(5, 3)
    drifts = {0: drift(0), 1: drift(1)}
    put = asked(release, {E3: queries}, ["image", "text", "image"], drifts)
    for number in (0, 1):
        for at, modality in enumerate(("image", "text", "image")):
            np.testing.assert_array_equal(put[number][at], drifts[number].taken_from(queries[at : at + 1], modality)[0])
    assert put[2] is queries
    assert all(each is queries for each in asked(keep(compensate=False), {E3: queries}, [None] * 3, {}))


def test_vectors_of_which_nobody_said_what_they_were_made_of_are_refused() -> None:
    with pytest.raises(BadQuery, match="say what the vectors were made of"):
        asked(keep(), {E3: rows(0, 1)}, [None], {0: drift(0), 1: drift(1)})


def test_a_drift_that_is_missing_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(Incompatible, match=r"encoder/demo@v2 was published without query_drift\.safetensors"):
        load_drifts(registry_with(tmp_path, None, drift(3)), keep())
    with pytest.raises(Incompatible, match="was not loaded"):
        asked(keep(), {E3: rows(0, 1)}, ["image"], {})


def test_an_encoder_of_another_line_has_no_drift_from_here(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, drift(2), drift(3))
    registry.publish_encoder("other", 1, {"weights.safetensors": b"others"})
    strange = replace(keep(), segments=(SegmentUse(S1, EncoderRef("other", 1), E3, True),))
    with pytest.raises(Incompatible, match="does not descend from encoder/other@v1"):
        load_drifts(registry, strange)


def test_one_file_of_a_version_is_fetched_and_checked_by_itself(tmp_path: Path) -> None:
    registry = registry_with(tmp_path, drift(2), drift(3))
    weights, found = registry.file(E2, "weights.safetensors"), registry.file(E2, QUERY_DRIFT)
    assert found == registry.files(E2)[QUERY_DRIFT]
    with pytest.raises(NotFound, match=r"encoder/demo@v1 has no file 'query_drift\.safetensors'; it has weights\.safetensors"):
        registry.file(E1, QUERY_DRIFT)
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    assert registry.file(E2, QUERY_DRIFT) == found
    with pytest.raises(Corrupt, match=r"'weights\.safetensors' is damaged"):
        registry.file(E2, "weights.safetensors")
