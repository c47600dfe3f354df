"""Every config and variant builds, and its settings are those of the code."""

import importlib

import pytest

from ega_jax.generation.generator import GeneratorConfig
from ega_jax.phases.tokenization import TokenizerSettings
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from experiments.configs import base, market, meituan, sequences

CONFIGS = [
    *((market, variant) for variant in market.VARIANTS),
    *((sequences, variant) for variant in sequences.VARIANTS),
    (meituan, None),
]


@pytest.mark.parametrize(("module", "variant"), CONFIGS)
def test_builds_with_settings_that_exist(module, variant):
    config = module.get_config() if variant is None else module.get_config(variant)
    assert set(config) == set(base.base("any"))
    settings = TokenizerSettings(**config.tokenizer)
    assert settings.model().num_codes == config.tokenizer.num_codes
    sizes = GeneratorConfig(
        num_codes=settings.num_codes, num_layers=settings.code_layers, **config.generator
    )
    assert sizes.width % sizes.num_heads == 0
    make_optimizer(OptimizerConfig(**config.optimizer), config.training.num_steps)
    assert config.evaluation.num_beams >= 10, "recall@10 is measured"


@pytest.mark.parametrize("module", [market, sequences])
def test_names_are_distinct_so_that_default_workdirs_are(module):
    names = [module.get_config(variant).name for variant in module.VARIANTS]
    assert len(set(names)) == len(names)


def test_the_papers_sizes():
    config = meituan.get_config()
    assert config.data.history_length == 256
    assert config.data.num_slots == 10
    assert (config.tokenizer.num_layers, config.tokenizer.num_codes) == (3, 1024)
    assert config.generator.encoder_blocks == config.generator.decoder_blocks == 3
    assert (config.training.batch_size, config.optimizer.learning_rate) == (128, 0.0024)


@pytest.mark.parametrize("name", ["market", "sequences"])
def test_an_unknown_variant_lists_the_valid_ones(name):
    module = importlib.import_module(f"experiments.configs.{name}")
    valid = ", ".join(module.VARIANTS)
    with pytest.raises(ValueError, match=f"no variant 'huge'; valid variants: {valid}"):
        module.get_config("huge")


def test_configs_do_not_share_what_they_change():
    config = market.get_config("tiny")
    config.tokenizer.num_codes = 7
    assert market.get_config("tiny").tokenizer.num_codes != 7
