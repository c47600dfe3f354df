"""The paper's sizes (EGA-V2, arXiv 2505.17549, sec. 5.1), for your own ad log.

    python -m experiments.pretrain --config=experiments/configs/meituan.py --config.data.path=DIR

T=256 behaviours, K=10 slots, C=3 layers of W=1024 codes, 3 encoder and 3 decoder blocks, batch
128, Adam with learning rate 0.0024. DIR is a folder in the ad-log format. The paper's log is not
public, and training at these sizes has not been run. docs/results.md compares the paper's results
with ours on the simulated market.
"""

from ml_collections import ConfigDict

from ega_jax.baselines.settings import Settings
from experiments.configs.base import flags_of

SAMPLES = {"batch_size": 128, "num_steps": 100_000}  # Every model trained on the log.
FEEDBACK = SAMPLES | {"width": 128, "hidden": 256}  # Models of users' responses.
CHANGES = {
    "data": {"path": "data/ad_log", "history_length": 256, "num_slots": 10},
    "tokenizer": {"num_codes": 1024, "num_steps": 10_000, "batch_size": 4096},
    "generator": {"width": 256, "hidden": 1024, "num_heads": 8, "dtype": "bfloat16"},
    "optimizer": {
        "learning_rate": 0.0024,
        "schedule": "constant",
        "warmup_steps": 0,
        "clip_norm": None,
    },
    "training": SAMPLES | {"checkpoint_every": 5000, "evaluate_every": 10_000},
    "evaluation": {"num_beams": 64},
    "reward": FEEDBACK,
    "allocation": {"num_beams": 64},
    "cascade": {
        "tiger": SAMPLES,
        "two_tower": SAMPLES,
        "hstu": FEEDBACK,
        "peri_cr": FEEDBACK,
    },
    "auction": {"batch_size": 2},  # All reports of one request take about 7 GB.
}


def settings() -> Settings:
    """Returns the settings at the paper's sizes."""
    return Settings(name="meituan").changed(CHANGES)


def get_config() -> ConfigDict:
    """Returns these settings for the flag `--config`."""
    return flags_of(settings())
