"""A run: a stream on its way from the first task to the report."""

from perdure.run.stream_run import StreamRun, learn_stream

__all__ = ["StreamRun", "learn_stream"]
