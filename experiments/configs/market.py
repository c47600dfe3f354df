"""The simulated ad market, made on first use, with known true click probabilities.

    python -m experiments.pretrain --config=experiments/configs/market.py:tiny

`tiny` is the quick start: data, tokens and generator take less than four minutes on two CPU cores.
`small` is the size used for the tables. `yelp_small` is the same with real POIs: set
`--config.data.market.sequences=DIR` to the folder of the Yelp sequences. `large` needs a GPU or
TPU. Expected results are in docs/results.md.
"""

from ml_collections import ConfigDict

from ega_jax.baselines.settings import Settings
from experiments.configs.base import choose, flags_of

NARROW = {  # Small enough to train on two CPU cores.
    "width": 64,
    "hidden": 256,
    "num_heads": 4,
    "encoder_blocks": 2,
    "decoder_blocks": 2,
}
ALIGNMENT = {"learning_rate": 1e-3, "kl_weight": 0.5}  # The KL penalty keeps CTR.
# The best of the former market: alignment's learning rate, and `tiny`'s alpha and rate of CGA.
# `small` has the winners of its own trials (experiments/results/trials).
TINY = {
    "data": {"history_length": 16, "market": {"size": "tiny"}},
    "tokenizer": {
        "num_codes": 64,
        "hidden": (128,),
        "latent": 32,
        "num_steps": 600,
        "batch_size": 600,
        "checkpoint_every": 300,
    },
    "generator": NARROW,
    "optimizer": {"learning_rate": 3e-3},
    "training": {"num_steps": 600, "checkpoint_every": 200, "evaluate_every": 200},
    "evaluation": {"num_beams": 16},
    "reward": {
        "width": 32,
        "hidden": 64,
        "num_heads": 4,
        "num_steps": 800,
        "checkpoint_every": 400,
        "evaluate_every": 400,
    },
    "allocation": {"num_beams": 16, "alpha": 2.4},
    "alignment": ALIGNMENT | {"num_steps": 40, "checkpoint_every": 20},
    "payment": {
        "probes": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0),
        "num_sessions": 512,
        "num_steps": 600,
        "checkpoint_every": 300,
    },
    "cascade": {
        "tiger": {"num_steps": 600},
        "two_tower": {"num_steps": 400},
        "hstu": {"num_steps": 400},
        "peri_cr": {"width": 32, "num_heads": 4, "hidden": 64, "num_steps": 800},
        "cga": {"width": 32, "num_heads": 4, "hidden": 64, "learning_rate": 3e-3},
        "cross_dqn": {"width": 32, "num_heads": 4, "hidden": 64},
    },
    "auction": {"num_sessions": 24},
}
SMALL = {
    "data": {"history_length": 32, "market": {"size": "small"}},
    "tokenizer": {"num_codes": 256, "latent": 32},
    "generator": NARROW,
    "optimizer": {"learning_rate": 3e-3},
    "training": {"num_steps": 3000, "checkpoint_every": 500, "evaluate_every": 1000},
    "evaluation": {"num_beams": 32},
    # The paper's tokens and creatives are the row `ega-paper` of the tables.
    "allocation": {"alpha": 8.0, "token_value": "ecpm", "creatives_by": "clicks"},
    # 16,000 requests of reinforcement, as CrossDQN has; CGA has another 8,000.
    "alignment": ALIGNMENT | {"estimator": "leave_one_out", "num_steps": 500},
    "payment": {"probes": (0.0, 0.25, 0.5, 1.0, 2.0, 4.0), "refinements": 4},
    "cascade": {
        "cga": {"learning_rate": 1e-3, "batch_size": 16},
        "cross_dqn": {"screen": 3, "batch_size": 16, "num_steps": 1000},
    },
    "one_rec": {"strength": 0.5},
}
YELP_SMALL = SMALL | {"data": {"history_length": 32, "market": {"size": "small", "world": "yelp"}}}
FEEDBACK = {  # Models of users' responses on `large`; as many epochs as on `small`.
    "width": 128,
    "hidden": 256,
    "batch_size": 512,
    "num_steps": 4000,
}
LARGE = {
    "data": {"history_length": 128, "market": {"size": "large"}},
    "tokenizer": {"num_codes": 1024, "num_steps": 10_000, "batch_size": 4096},
    "generator": {"width": 256, "hidden": 1024, "num_heads": 8, "dtype": "bfloat16"},
    "training": {
        "batch_size": 512,
        "num_steps": 30_000,
        "checkpoint_every": 2000,
        "evaluate_every": 5000,
    },
    "evaluation": {"num_beams": 64},
    "reward": FEEDBACK,
    "allocation": {"num_beams": 64},
    "cascade": {
        "tiger": {"batch_size": 512, "num_steps": 30_000},  # As many samples as the generator.
        "two_tower": {"batch_size": 512, "num_steps": 4000},
        "hstu": FEEDBACK,
        "peri_cr": FEEDBACK,
    },
    "auction": {"batch_size": 2},  # All reports of one request take about 7 GB.
}
VARIANTS = {"tiny": TINY, "small": SMALL, "yelp_small": YELP_SMALL, "large": LARGE}


def settings(variant: str = "tiny") -> Settings:
    """Returns the settings of a variant: tiny, small, yelp_small or large."""
    return Settings(name=f"market-{variant}").changed(choose(variant, VARIANTS))


def get_config(variant: str = "tiny") -> ConfigDict:
    """Returns the settings of a variant for the flag `--config`."""
    return flags_of(settings(variant))
