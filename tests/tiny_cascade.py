"""MCA of random stages, which recalls few of the ads, and GR, for requests of `tiny_models`."""

import functools

import jax
import jax.numpy as jnp
from tiny_log import shaken
from tiny_models import GENERATOR, REWARD, tiny_ega, with_beams

from ega_jax.baselines.cascade.cga import CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig
from ega_jax.baselines.cascade.hstu import HSTUConfig
from ega_jax.baselines.cascade.mca import (
    MCA,
    MCAConfig,
    Upstream,
    cga,
    cross_dqn,
    hstu,
    peri_cr,
)
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.baselines.cascade.tiger import tiger_config
from ega_jax.baselines.gr import GR
from ega_jax.generation import generator

_SMALL = {"width": 8, "num_heads": 2, "hidden": 8}
CASCADE = MCAConfig(
    reward=REWARD,
    tiger=tiger_config(GENERATOR),
    hstu=HSTUConfig(**_SMALL, **GENERATOR.shared),
    peri_cr=PeriCRConfig(**_SMALL, **GENERATOR.shared),
    cga=CGAConfig(num_ads=GENERATOR.num_slots, **_SMALL),
    cross_dqn=CrossDQNConfig(num_slots=GENERATOR.num_slots, screen=1, **_SMALL),
    num_recalled=3,
)


def random_params(init, *sizes):
    """Parameters of the shapes that `init(key, *sizes)` gives, all random."""
    shapes = jax.eval_shape(lambda key: init(key, *sizes), jax.random.key(0))
    return shaken(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), noise=0.6)


@functools.cache
def tiny_peri_cr():
    """Random parameters of Peri-CR."""
    return random_params(peri_cr.init, CASCADE.peri_cr, tiny_ega().items)


@functools.cache
def tiny_cascade() -> MCA:
    """Random parameters, nowhere near where stages start: at the order of eCPM."""
    items, c = tiny_ega().items, CASCADE
    return MCA(
        reward=tiny_ega().reward,
        items=items,
        upstream=Upstream(
            tiger=random_params(generator.init, c.tiger, items.catalogue),
            hstu=random_params(hstu.init, c.hstu, items),
            peri_cr=tiny_peri_cr(),
            tree=None,
        ),
        cga=random_params(cga.init, c.cga, c.hstu.width),
        cross_dqn=random_params(cross_dqn.init, c.cross_dqn, c.hstu.width),
        config=c,
    )


@functools.cache
def tiny_gr() -> GR:
    """The random generator with Peri-CR's creatives and a narrow search."""
    shared = vars(with_beams(tiny_ega(), 6))
    return GR(**shared, peri_cr=tiny_peri_cr(), peri_cr_config=CASCADE.peri_cr)
