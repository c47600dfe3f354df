"""Which values the fields of a config may take: asked before a command makes anything of them."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from ega_jax.auction.alignment import PARTS
from ega_jax.auction.pricing import RULES
from ega_jax.baselines.retrieval.sasrec import LOSSES
from ega_jax.data.ad_logs import SPLITS
from ega_jax.data.market.config import SIZES, WORLDS, market_config
from ega_jax.data.sequences import HELD_OUT
from ega_jax.generation.bidding import SCOPES, TOKEN_BIDS
from ega_jax.payment.lagrangian import REGRETS
from ega_jax.payment.network import HEADS
from ega_jax.phases.tokenization import KINDS as TOKENIZERS
from ega_jax.systems import KINDS as SYSTEMS
from ega_jax.training.optimizer import SCHEDULES

CHOICES = {  # By the last part of a field's name, as below, or by all of it.
    "size": tuple(SIZES),
    "split": (*HELD_OUT, *SPLITS),
    "world": WORLDS,
    "tokenizer.kind": TOKENIZERS,
    "dtype": ("float32", "bfloat16"),
    "schedule": SCHEDULES,
    "token_bid": TOKEN_BIDS,
    "scope": SCOPES,
    "part": PARTS,
    "heads": HEADS,
    "regret": REGRETS,
    "system": tuple(SYSTEMS),
    "rule": tuple(RULES),
    "loss": LOSSES,
}
RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda x: x >= 1,
        "batch_size checkpoint_every log_every history_length num_layers "
        "num_iterations hidden latent width num_heads blocks encoder_blocks decoder_blocks "
        "num_beams validation_rows num_sessions num_served num_reports tabulated_at_once "
        "update_every num_recalled screen num_last num_steps",
    ),
    ("at least 2", lambda x: x >= 2, "num_codes"),
    ("at least 10", lambda x: x >= 10, "evaluation.num_beams"),
    (
        "at least 0",
        lambda x: x >= 0,
        "seed evaluate_every num_slots warmup_steps max_ads min_gap joint_rows sampled num_losing "
        "weight_decay beta kappa reserve kl_weight multiplier_init probes "
        "alignment.num_steps",
    ),
    ("above 0", lambda x: x > 0, "learning_rate clip_norm alpha rho rho_growth rho_max strength"),
    ("a share from 0 to 1", lambda x: 0 <= x <= 1, "interactions final_fraction discount epsilon"),
    ("a share below 1", lambda x: 0 <= x < 1, "dropout_rate history_dropout exposure_weight"),
    ("a share above 0", lambda x: 0 < x <= 1, "fractions recency tau"),
)
_RANGES = {name: (words, test) for words, test, names in RANGES for name in names.split()}


def check_config(config: Mapping[str, Any]) -> None:
    """Refuses a config with a value that nothing can be done with.

    Args:
      config: nested settings of any config file.

    Raises:
      ValueError: names the first field that is not one of its choices, is out of its range, or
        does not fit another field.
    """
    fields: dict[str, Any] = flatten_dict(config, sep=".")
    _check_values(fields)
    _check_relations(fields)
    if market := config.get("data", {}).get("market"):
        market_config(market)


def _check_values(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        for one in value if isinstance(value, list | tuple) else (value,):
            if (valid := _of(CHOICES, name)) and one not in valid:
                raise ValueError(f"config.{name}: {one!r} is not one of {', '.join(valid)}")
            if (found := _of(_RANGES, name)) and one is not None:
                words, is_valid = found
                if not (math.isfinite(one) and is_valid(one)):
                    raise ValueError(f"config.{name} is {one}: it must be {words}")


def _check_relations(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        group, _, last = name.rpartition(".")
        if last == "num_heads" and (width := fields[f"{group}.width"]) % value:
            raise ValueError(f"config.{name}: {value} heads do not divide a width of {width}")
        if last == "warmup_steps":
            steps = fields.get(f"{group}.num_steps", fields["training.num_steps"])
            if value >= steps:
                raise ValueError(
                    f"config.{name}: {value} warm-up steps leave none of {steps} steps"
                )
    if fields.get("data.market.world") == "yelp" and not (
        fields["data.path"] or Path(fields["data.market.sequences"] or "-").expanduser().is_dir()
    ):
        raise ValueError(
            "config.data.market.world is yelp: set config.data.market.sequences to the folder of "
            f"the Yelp sequences; {fields['data.market.sequences']!r} is none"
        )
    if fields.get("auction.system") == "gr" and not fields["allocation.bid_free"]:
        raise ValueError(
            "config.allocation.bid_free: GR generates without bids (auction.system=gr): set it True"
        )
    if fields.get("auction.system", "ega") != "ega" and fields["alignment.joint_rows"]:
        raise ValueError("config.alignment.joint_rows: EGA alone trains in one stage: set it 0")
    if (rule := fields.get("auction.rule")) in HEADS and rule not in fields["payment.heads"]:
        raise ValueError(f"config.auction.rule: {rule} is no head of config.payment.heads")
    tried = fields.get("payment.num_reports", 0)
    if (sampled := fields.get("payment.lagrangian.sampled", 0)) > tried:
        raise ValueError(f"config.payment.lagrangian.sampled: {sampled} of {tried} reports")
    if list(probes := fields.get("payment.probes", ())) != sorted(set(probes)):
        raise ValueError(f"config.payment.probes: {tuple(probes)} do not rise")
    slots, screen = fields.get("data.market.num_slots"), fields.get("cascade.cross_dqn.screen")
    if fields.get("auction.system") == "mca" and slots and slots % screen:
        raise ValueError(
            f"config.cascade.cross_dqn.screen: screens of {screen} slots do not fill {slots}"
        )
    if sum(shares := fields.get("data.fractions", ())) >= 1:
        raise ValueError(f"config.data.fractions: {tuple(shares)} leave no test sessions")


def _of(rules: Mapping[str, Any], name: str) -> Any:
    """What stands for a field, by all of its name or its last part; `None` without either."""
    return rules.get(name, rules.get(name.rpartition(".")[2]))
