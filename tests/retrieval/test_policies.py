"""Index policies: which segments stay, who queries them, and what is embedded for a new task."""

import numpy as np
import pytest

from perdure.errors import ConfigError
from perdure.records import EncoderRef, Release, SegmentRef, SegmentUse
from perdure.retrieval import POLICIES, items_to_embed, next_release

E1, E2, E3 = (EncoderRef("demo", version) for version in (1, 2, 3))
S1, S2, S3 = (SegmentRef("demo", version) for version in (1, 2, 3))


def three_tasks(policy: str) -> Release:
    """The release after the third task."""
    release = None
    for task, (encoder, segment) in enumerate(((E1, S1), (E2, S2), (E3, S3))):
        release = next_release(policy, release, encoder=encoder, segment=segment, id=f"demo@v{task + 1}", run="demo", task=task)
    assert release is not None
    return release


def test_reindex_has_the_new_segment_alone():
    assert three_tasks("reindex").segments == (SegmentUse(S3, E3, E3),)
    assert three_tasks("reindex").encoders() == (E3,)


def test_keep_has_every_segment_queried_by_the_new_encoder():
    assert three_tasks("keep").segments == (SegmentUse(S1, E1, E3), SegmentUse(S2, E2, E3), SegmentUse(S3, E3, E3))
    assert three_tasks("keep").encoders() == (E3,)


def test_versioned_has_every_segment_queried_by_its_maker():
    assert three_tasks("versioned").segments == (SegmentUse(S1, E1, E1), SegmentUse(S2, E2, E2), SegmentUse(S3, E3, E3))
    assert three_tasks("versioned").encoders() == (E3, E1, E2)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_release_names_its_parent_its_task_and_its_merge(policy: str):
    release = three_tasks(policy)
    assert (release.id, release.run, release.task, release.parent, release.merge) == ("demo@v3", "demo", 2, "demo@v2", "standardised")
    assert release.encoder == E3 and release.policy == policy
    first = next_release(policy, None, encoder=E1, segment=S1, id="demo@v1", run="demo", task=0, merge="raw", metrics={"a": 1})
    assert first.parent is None and first.segments == (SegmentUse(S1, E1, E1),) and first.merge == "raw" and first.metrics == {"a": 1}


def test_a_change_of_policy_between_releases_takes_the_old_segments_as_they_are():
    kept = three_tasks("keep")
    release = next_release("versioned", kept, encoder=E3, segment=SegmentRef("demo", 4), id="demo@v4", run="demo", task=3)
    assert [use.queried_by for use in release.segments] == [E1, E2, E3, E3]


def test_reindex_embeds_everything_and_the_others_what_is_new():
    galleries = [np.array([5, 1]), np.array([9]), np.array([2, 3])]
    assert items_to_embed("reindex", galleries).tolist() == [5, 1, 9, 2, 3]
    assert items_to_embed("keep", galleries).tolist() == items_to_embed("versioned", galleries).tolist() == [2, 3]


def test_an_unknown_policy_or_merge_is_refused():
    with pytest.raises(ConfigError, match="no policy named 'rebuild'; known: reindex, keep, versioned"):
        items_to_embed("rebuild", [np.array([1])])
    with pytest.raises(ConfigError, match="no policy named"):
        next_release("rebuild", None, encoder=E1, segment=S1, id="demo@v1", run="demo", task=0)
    with pytest.raises(ConfigError, match="no way to merge named 'best'"):
        next_release("keep", None, encoder=E1, segment=S1, id="demo@v1", run="demo", task=0, merge="best")
