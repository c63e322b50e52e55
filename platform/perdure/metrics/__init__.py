"""Metrics: how good a ranking is (retrieval), and what learning did to what was learned before (continual)."""
