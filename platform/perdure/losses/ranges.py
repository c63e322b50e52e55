"""Ranges of numbers that options of losses and strategies share; a catalog checks them, so a wrong value is an error of the config."""

from typing import Annotated

from pydantic import Field

__all__ = ["Count", "Degrees", "Fraction", "NonNegative", "Positive", "PositiveFraction", "UpToFive"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
UpToFive = Annotated[float, Field(ge=0, le=5)]
Degrees = Annotated[float, Field(gt=0, lt=90)]
Count = Annotated[int, Field(ge=1)]
