"""Regret by slot and by misreport: where, and by which reports, advertisers gain (paper sec. 5)."""

import numpy as np

from ega_jax.evaluation.auction import HONEST, Judged
from ega_jax.evaluation.misreports import MULTIPLES
from ega_jax.evaluation.off_policy import Ratio, ratio


def psi_interval(judged: Judged, rule: str) -> Ratio | None:
    """Psi of a payment rule with its 95 % interval over sessions; None without utility."""
    return _relative(*_regret_and_utility(judged, rule))


def psi_by_slot(judged: Judged, rule: str) -> list[Ratio | None]:
    """Psi of the ads of each slot, first slot first; None where ads have no utility."""
    regret, utility = _regret_and_utility(judged, rule)
    return [_relative(regret[:, k], utility[:, k]) for k in range(judged.num_slots)]


def gain_by_misreport(judged: Judged, rule: str) -> np.ndarray:
    """What all winning ads would gain if each reported a multiple of its value, the others none.

    Args:
      judged: the sessions.
      rule: the payment rule.

    Returns:
      `[81]` gain over the utility of honest reports, at each of `MULTIPLES`; NaN without utility.
    """
    utility = np.where(judged.winners[..., None], judged.utility(rule), 0.0)
    honest = utility[..., HONEST].sum()
    gain = utility[..., : len(MULTIPLES)].sum(axis=(0, 1)) - honest
    return gain / honest if honest > 0 else np.full(len(MULTIPLES), np.nan)


def _regret_and_utility(judged: Judged, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Regret and utility of the ads in the slots, both `[D, K]`, 0 where there is no ad."""
    utility = judged.utility(rule)[:, : judged.num_slots]
    where = judged.winners[:, : judged.num_slots]
    honest = utility[..., HONEST]
    regret = np.maximum(utility.max(axis=-1) - honest, 0.0)
    return np.where(where, regret, 0.0), np.where(where, honest, 0.0)


def _relative(regret: np.ndarray, utility: np.ndarray) -> Ratio | None:
    """The ratio of the sums over sessions `[D, ...]`."""
    rows = len(regret)
    regret, utility = regret.reshape(rows, -1).sum(1), utility.reshape(rows, -1).sum(1)
    return ratio(regret, utility) if utility.sum() > 0 else None
