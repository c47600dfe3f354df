"""The registry of systems, read by commands, tables and checks.

To add a system, write one subclass of `System` and add one line here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ega_jax.auction.reserves import MONOPOLY
from ega_jax.baselines.cascade.training import check_mca, train_mca
from ega_jax.baselines.gr import check_gr, train_gr
from ega_jax.errors import UserError
from ega_jax.phases.auction import AuctionTraining, SystemKind
from ega_jax.phases.ega import check_ega, train_ega
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.settings import PhaseSettings

# Settings of a system without payment network: only its slates or closed-form prices are compared.
UNPRICED = {
    "auction.rule": "first_price",
    "payment.heads": (),
    "payment.probes": (),
    "payment.refinements": 0,
}
GR = UNPRICED | {"auction.rule": "gsp", "allocation.bid_free": True}
KINDS: dict[str, SystemKind] = {
    "mca": SystemKind(train_mca, {"auction.system": "mca"}, check_mca),
    "gr": SystemKind(train_gr, {"auction.system": "gr"} | GR, check_gr),
    "ega": SystemKind(train_ega, check=check_ega),
}
PAPER = {  # The paper's tokens, creatives and estimator, with the alpha tuned for them.
    "allocation.token_value": "bid",
    "allocation.creatives_by": "likelihood",
    "allocation.alpha": 2.4,
    "alignment.estimator": "contribution",
}
ABLATIONS: dict[str, Mapping[str, Any]] = {  # Ablation of EGA -> the settings that it changes.
    "ega-mtp": {"generator.multi_token": False},
    "ega-end": {"alignment.one_stage": True},
    "ega-bid": {"allocation.token_bid": "mean"},
    "ega-paper": PAPER,
    "ega-likelihood": {"allocation.creatives_by": "likelihood"},
    "ega-gsp": {"auction.rule": "gsp"},
    "ega-probed": {"auction.rule": "myerson_probed"},
    "ega-smoothed": {"auction.rule": "myerson_probed", "allocation.bid_smoothing": 0.5},
    "ega-blind": {"payment.probes": (), "payment.refinements": 0},
    "ega-unaligned": UNPRICED | {"auction.rule": "gsp", "alignment.num_steps": 0},
}


def reserved() -> dict[str, Mapping[str, Any]]:
    """The kinds of systems, with monopoly prices of past bids as reserves."""
    own = {"auction.reserves": MONOPOLY}
    return {f"{name}-reserves": {**kind.changes, **own} for name, kind in KINDS.items()}


def compared() -> dict[str, Mapping[str, Any]]:
    """The systems compared in tables, with the fields that each sets differently from EGA."""
    return {name: kind.changes for name, kind in KINDS.items()} | ABLATIONS | reserved()


def training_of(pretraining: Pretraining, folder: Path) -> AuctionTraining:
    """The training job of the kind of system named by `config.auction.system`.

    Args:
      pretraining: the finished pre-training phases, with the settings.
      folder: the system's own folder in the workdir.

    Raises:
      UserError: there is no such kind, or it does not support the settings.
    """
    check_settings(pretraining.settings)
    return AuctionTraining(pretraining, folder, KINDS[pretraining.settings.auction.system])


def check_settings(settings: PhaseSettings) -> None:
    """Checks that the named kind of system exists and supports the settings.

    Raises:
      UserError: there is no such kind, or it does not support the settings; names the field.
    """
    kind = settings.auction.system
    if kind not in KINDS:
        raise UserError(f"config.auction.system: {kind!r} is not one of {', '.join(KINDS)}")
    KINDS[kind].check(settings)
