"""Values of config fields are refused before a command makes anything of them."""

import re

import pytest
from flax.traverse_util import flatten_dict
from test_configs import CONFIGS

from ega_jax.data.market.config import SIZES
from experiments.common import checks
from experiments.configs import market, retrieval


@pytest.mark.parametrize(("module", "variant"), [*CONFIGS, (retrieval, "beauty")])
def test_every_config_passes(module, variant):
    config = module.get_config() if variant is None else module.get_config(variant)
    if variant == "yelp_small":
        with pytest.raises(ValueError, match=r"set config\.data\.market\.sequences to the folder"):
            checks.check_config(config.to_dict())
        config.data.market.sequences = "."
    checks.check_config(config.to_dict())


def test_every_number_has_a_range():
    for config in (market.get_config(), retrieval.get_config()):
        for name, value in flatten_dict(config.to_dict(), sep=".").items():
            numbers = value if isinstance(value, tuple) else (value,)
            if all(type(number) in (int, float) for number in numbers):
                assert checks._of(checks._RANGES, name) or numbers == (), name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training.num_steps", 0, "config.training.num_steps is 0: it must be at least 1"),
        ("alignment.num_steps", -1, "config.alignment.num_steps is -1: it must be at least 0"),
        ("auction.num_sessions", 0, "config.auction.num_sessions is 0: it must be at least 1"),
        ("tokenizer.num_codes", 1, "config.tokenizer.num_codes is 1: it must be at least 2"),
        ("optimizer.learning_rate", float("nan"), "learning_rate is nan: it must be above 0"),
        ("optimizer.learning_rate", float("inf"), "learning_rate is inf: it must be above 0"),
        ("allocation.reserve", -0.1, "config.allocation.reserve is -0.1: it must be at least 0"),
        ("reward.dropout_rate", 1.0, "reward.dropout_rate is 1.0: it must be a share below 1"),
        ("payment.probes", (0.0, -1.0), "config.payment.probes is -1.0: it must be at least 0"),
        ("payment.heads", ("rate", "vcg"), "payment.heads: 'vcg' is not one of rate, threshold"),
        ("data.market.size", "huge", "market.size: 'huge' is not one of " + ", ".join(SIZES)),
        ("generator.num_heads", 3, "generator.num_heads: 3 heads do not divide a width of 64"),
        (
            "optimizer.warmup_steps",
            600,
            "optimizer.warmup_steps: 600 warm-up steps leave none of 600 steps",
        ),
        (
            "cascade.hstu.warmup_steps",
            400,
            "hstu.warmup_steps: 400 warm-up steps leave none of 400 steps",
        ),
        ("evaluation.num_beams", 9, "config.evaluation.num_beams is 9: it must be at least 10"),
        ("auction.system", "gr", "config.allocation.bid_free: GR generates without bids"),
        ("payment.probes", (1.0, 0.5), "payment.probes: (1.0, 0.5) do not rise"),
        ("payment.heads", ("rate",), "auction.rule: threshold is no head of config.payment.heads"),
        ("payment.lagrangian.sampled", 11, "lagrangian.sampled: 11 of 10 reports"),
        ("data.market.num_slots", 1, "num_slots must be at least 2, got 1"),
        ("data.market.num_slots", 40, "must each be at least num_slots (40)"),
        ("data.fractions", (0.5, 0.5), "fractions: (0.5, 0.5) leave no test sessions"),
    ],
)
def test_a_value_out_of_range_is_named(field, value, message):
    config = market.get_config("tiny")
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(message)):
        checks.check_config(config.to_dict())


def test_other_systems_than_ega_do_not_train_in_one_stage():
    config = market.get_config("tiny")
    config.update_from_flattened_dict({"auction.system": "mca", "alignment.joint_rows": 2})
    with pytest.raises(ValueError, match="joint_rows: EGA alone trains in one stage"):
        checks.check_config(config.to_dict())
