"""Streams: a dataset cut into tasks. A new way of cutting is one file and one line here."""

from perdure.catalog import Catalog
from perdure.stream.by_group import by_group
from perdure.stream.class_incremental import class_incremental
from perdure.stream.cross_modal import cross_modal
from perdure.stream.dataset_sequence import dataset_sequence
from perdure.stream.modality_sequence import modality_sequence
from perdure.stream.task_stream import TaskStream

__all__ = ["STREAMS", "TaskStream"]

STREAMS: Catalog[TaskStream] = Catalog(
    "stream kind",
    {
        "class_incremental": class_incremental,
        "by_group": by_group,
        "dataset_sequence": dataset_sequence,
        "cross_modal": cross_modal,
        "modality_sequence": modality_sequence,
    },
)
