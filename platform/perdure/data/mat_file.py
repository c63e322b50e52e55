"""MATLAB's .mat files (version 5 to 7), as plain Python data; reading one runs no code of the file."""

from pathlib import Path
from typing import Any

import numpy as np

from perdure.errors import DataError

__all__ = ["read_mat"]


def read_mat(path: Path, variable: str) -> list[Any]:
    """A variable as a list: a struct array gives one dict an element, a cell or numeric array its values.

    Raises:
        DataError: no such file, not a .mat file, no variable of that name (tells which there are).
    """
    from scipy.io import loadmat  # slow to import, and few datasets need it
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(path, simplify_cells=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (MatReadError, OSError, ValueError, TypeError, NotImplementedError) as error:
        raise DataError(f"{path}: not a .mat file that can be read (version 5 to 7 is expected): {error}") from None
    if variable not in found:
        known = ", ".join(name for name in found if not name.startswith("__")) or "none"
        raise DataError(f"{path}: no variable '{variable}' in it; its variables are: {known}")
    value: Any = found[variable]
    return [value] if isinstance(value, dict | str) else list(np.atleast_1d(value))
