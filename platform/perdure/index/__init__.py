"""Gallery vectors: partitions that are searched, segments that hold them, lists of hits that are merged."""

from perdure.index.binary import BinaryPartition
from perdure.index.curve import ScoreCurve
from perdure.index.filters import rows_that_pass
from perdure.index.flat import FlatPartition
from perdure.index.hnsw import HNSWPartition
from perdure.index.ivfpq import IVFPQPartition
from perdure.index.merge import merge_by_probability, merge_by_rank, merge_partitions, merge_segments
from perdure.index.partition import Partition, limit_threads, partition_of
from perdure.index.routing import TaskRouter, View
from perdure.index.segment import PARTITIONS, Segment, build_segment, load_segment
from perdure.index.sizing import GalleryPlan, plan_gallery
from perdure.index.statistics import SegmentStatistics
from perdure.index.table import Entry, SegmentTable

__all__ = [
    "PARTITIONS",
    "BinaryPartition",
    "Entry",
    "FlatPartition",
    "GalleryPlan",
    "HNSWPartition",
    "IVFPQPartition",
    "Partition",
    "ScoreCurve",
    "Segment",
    "SegmentStatistics",
    "SegmentTable",
    "TaskRouter",
    "View",
    "build_segment",
    "limit_threads",
    "load_segment",
    "merge_by_probability",
    "merge_by_rank",
    "merge_partitions",
    "merge_segments",
    "partition_of",
    "plan_gallery",
    "rows_that_pass",
]
