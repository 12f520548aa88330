"""A small damped Gauss-Newton fit with priors, on logarithms: the constants are positive and errors are relative."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
# Residuals beyond this count in proportion, not squared: a row that was run in another way does not pull the fit.
BEND = 0.15


def fit(
    residuals: Callable[[Vector], Vector],
    start: Sequence[float],
    spread: Sequence[float],
    rounds: int = 40,
    slope_step: float = 1e-4,
) -> Vector:
    """Positive constants that minimise the bent squares of `residuals` and of their own distance from `start`.

    `start` is the prior's middle, `spread` its standard deviation in logarithms (0.1: about 10 %). `slope_step` is wide
    where `residuals` jump, as a simulation's do.
    """
    middle = np.log(np.asarray(start))
    width = np.asarray(spread)

    def whole(at: Vector) -> Vector:
        return np.concatenate([residuals(np.exp(at)) / BEND, (at - middle) / width])

    def cost(values: Vector) -> float:
        size = np.abs(values)
        return float(np.where(size < 1, values**2 / 2, size - 0.5).sum())

    at, damping = middle.copy(), 1e-2
    values = whole(at)
    for _ in range(rounds):
        slopes = np.stack([(whole(at + slope_step * unit) - values) / slope_step for unit in np.eye(len(at))], axis=1)
        weights = 1 / np.maximum(1, np.abs(values))
        square = slopes.T @ (slopes * weights[:, None])
        step = -np.linalg.solve(square + damping * np.diag(np.diag(square)), slopes.T @ (values * weights))
        new = whole(at + step)
        if cost(new) < cost(values):
            done = np.abs(step).max() < 1e-4
            at, values, damping = at + step, new, damping / 3
            if done:
                break
        else:
            damping *= 4
            if damping > 1e6:
                break
    return np.exp(at)
