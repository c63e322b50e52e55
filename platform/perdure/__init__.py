"""Perdure: image and text search that keeps learning without forgetting.

Start reading at `docs/tour.md`. The rooms, from the bottom up: `records`, `config`, `catalog`; `losses`, `metrics`; `data`,
`encoders`, `memory`, `index`; `stream`, `strategies`, `registry`; `training`, `retrieval`; `pipeline`, `report`; `cluster`.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
