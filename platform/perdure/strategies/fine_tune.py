"""Fine-tuning: learn the new task, protect nothing. The lower bound that every strategy is compared with."""

from perdure.strategies.strategy import Strategy

__all__ = ["FineTune"]


class FineTune(Strategy):
    """L = the ranking terms on the new task alone."""

    name = "fine_tune"
