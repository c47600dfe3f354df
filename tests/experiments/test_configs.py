"""Every config and variant builds, and is what its docstring says."""

import importlib

import pytest

from ega_jax.baselines.settings import Settings
from ega_jax.errors import UserError
from ega_jax.systems import check_settings
from experiments.configs import market, meituan, retrieval, sequences

CONFIGS = [
    *((market, variant) for variant in market.VARIANTS),
    *((sequences, variant) for variant in sequences.VARIANTS),
    *((retrieval, variant) for variant in retrieval.VARIANTS),
    (meituan, None),
]


@pytest.mark.parametrize(("module", "variant"), CONFIGS)
def test_flags_get_the_settings(module, variant):
    variants = [] if variant is None else [variant]
    config, settings = module.get_config(*variants), module.settings(*variants)
    assert config.to_dict() == settings.to_dict()
    assert type(settings).from_dict(config.to_dict()) == settings
    if isinstance(settings, Settings):
        check_settings(settings)


@pytest.mark.parametrize("module", [market, sequences, retrieval])
def test_names_are_distinct_so_that_default_workdirs_are(module):
    names = [module.settings(variant).name for variant in module.VARIANTS]
    assert len(set(names)) == len(names)


def test_the_papers_sizes():
    settings = meituan.settings()
    assert (settings.data.history_length, settings.data.num_slots) == (256, 10)
    assert (settings.tokenizer.num_layers, settings.tokenizer.num_codes) == (3, 1024)
    assert settings.generator.encoder_blocks == settings.generator.decoder_blocks == 3
    assert (settings.training.batch_size, settings.optimizer.learning_rate) == (128, 0.0024)
    assert settings.optimizer.clip_norm is None


@pytest.mark.parametrize("name", ["market", "sequences"])
def test_an_unknown_variant_lists_the_valid_ones(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    valid = ", ".join(module.VARIANTS)
    with pytest.raises(UserError, match=f"no variant 'huge'; valid variants: {valid}"):
        module.settings("huge")


def test_configs_do_not_share_what_they_change():
    config = market.get_config("tiny")
    config.tokenizer.num_codes = 7
    assert market.get_config("tiny").tokenizer.num_codes != 7
