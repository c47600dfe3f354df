"""The registry of systems: what commands, tables and checks know of them.

A new system is one class, a `System`, and one line here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ega_jax.baselines.cascade.training import check_mca, train_mca
from ega_jax.baselines.gr import check_gr, train_gr
from ega_jax.errors import UserError
from ega_jax.phases.auction import AuctionTraining, SystemKind
from ega_jax.phases.ega import train_ega
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.settings import PhaseSettings

# Of a system that is compared by its slates, or pays by a rule that needs no network.
UNPRICED = {"auction.rule": "first_price", "payment.heads": (), "payment.probes": ()}
GR = UNPRICED | {"auction.rule": "gsp", "allocation.bid_free": True}
KINDS: dict[str, SystemKind] = {
    "mca": SystemKind(train_mca, {"auction.system": "mca"}, check_mca),
    "gr": SystemKind(train_gr, {"auction.system": "gr"} | GR, check_gr),
    "ega": SystemKind(train_ega),
}
ABLATIONS: dict[str, Mapping[str, Any]] = {  # Of EGA, and what each sets otherwise.
    "ega-mtp": {"generator.multi_token": False},
    "ega-end": {"alignment.joint_rows": 2},
    "ega-bid": {"allocation.token_bid": "mean"},
    "ega-gsp": {"auction.rule": "gsp"},
    "ega-unaligned": UNPRICED | {"auction.rule": "gsp", "alignment.num_steps": 0},
}


def compared() -> dict[str, Mapping[str, Any]]:
    """The systems that tables compare, and the fields that each sets otherwise than EGA."""
    return {name: kind.changes for name, kind in KINDS.items()} | ABLATIONS


def training_of(pretraining: Pretraining, folder: Path) -> AuctionTraining:
    """The training of the kind of system that a config names.

    Args:
      pretraining: the first half, finished.
      folder: of this system, below the workdir.

    Raises:
      UserError: there is no such kind, or it cannot take the settings.
    """
    check_settings(pretraining.settings)
    return AuctionTraining(pretraining, folder, KINDS[pretraining.settings.auction.system])


def check_settings(settings: PhaseSettings) -> None:
    """Checks that the named kind of system exists and can take the settings.

    Raises:
      UserError: it does not or cannot; names the field.
    """
    kind = settings.auction.system
    if kind not in KINDS:
        raise UserError(f"config.auction.system: {kind!r} is not one of {', '.join(KINDS)}")
    KINDS[kind].check(settings)
