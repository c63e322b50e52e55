"""Gallery vectors: partitions that are searched, segments that hold them, lists of hits that are merged."""

from perdure.index.binary import BinaryPartition
from perdure.index.flat import FlatPartition
from perdure.index.hnsw import HNSWPartition
from perdure.index.merge import merge_partitions, merge_segments
from perdure.index.partition import Partition, limit_threads, partition_of
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
    "Partition",
    "Segment",
    "SegmentStatistics",
    "SegmentTable",
    "build_segment",
    "limit_threads",
    "load_segment",
    "merge_partitions",
    "merge_segments",
    "partition_of",
    "plan_gallery",
]
