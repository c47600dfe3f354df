"""MCA of random stages, which recalls few of the ads, and GR, for requests of `tiny_models`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from tiny_log import shaken
from tiny_models import GENERATOR, REWARD, tiny_ega, with_beams

from ega_jax.baselines.cascade.cga import CGAConfig
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig
from ega_jax.baselines.cascade.funnel import FunnelSettings
from ega_jax.baselines.cascade.hstu import HSTUConfig
from ega_jax.baselines.cascade.mca import MCA, MCAConfig, cga, cross_dqn
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.baselines.cascade.tiger import tiger_config
from ega_jax.baselines.cascade.two_tower import TwoTowerConfig
from ega_jax.baselines.cascade.upstream import (
    Upstream,
    UpstreamConfig,
    hstu,
    peri_cr,
    two_tower,
)
from ega_jax.baselines.gr import GR
from ega_jax.generation import generator

_SMALL = {"width": 8, "num_heads": 2, "hidden": 8}
RECALLED = 3
UPSTREAM = UpstreamConfig(
    tiger=tiger_config(GENERATOR),
    two_tower=TwoTowerConfig(width=8, hidden=8, **GENERATOR.shared),
    hstu=HSTUConfig(**_SMALL, **GENERATOR.shared),
    peri_cr=PeriCRConfig(**_SMALL, **GENERATOR.shared),
    funnel=FunnelSettings(least_recalled=RECALLED, most_recalled=RECALLED),
)
CASCADE = MCAConfig(
    reward=REWARD,
    cga=CGAConfig(num_ads=GENERATOR.num_slots, **_SMALL),
    cross_dqn=CrossDQNConfig(num_slots=GENERATOR.num_slots, screen=1, **_SMALL),
)


def random_params(init, *sizes):
    """Parameters of the shapes that `init(key, *sizes)` gives, all random."""
    shapes = jax.eval_shape(lambda key: init(key, *sizes), jax.random.key(0))
    return shaken(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), noise=0.6)


@functools.cache
def tiny_peri_cr():
    """Random parameters of Peri-CR."""
    return random_params(peri_cr.init, UPSTREAM.peri_cr, tiny_ega().items)


@functools.cache
def tiny_cascade() -> MCA:
    """Random parameters, nowhere near where stages start: at the order of eCPM."""
    items, c, u = tiny_ega().items, CASCADE, UPSTREAM
    towers = random_params(two_tower.init, u.two_tower, items)
    return MCA(
        reward=tiny_ega().reward,
        items=items,
        upstream=Upstream(
            tiger=random_params(generator.init, u.tiger, items.catalogue),
            two_tower=towers,
            poi_table=two_tower.poi_table(towers, u.two_tower, items),
            hstu=random_params(hstu.init, u.hstu, items),
            peri_cr=tiny_peri_cr(),
            config=u,
        ),
        cga=random_params(cga.init, c.cga, u.hstu.width),
        cross_dqn=random_params(cross_dqn.init, c.cross_dqn, u.hstu.width),
        config=c,
    )


def with_funnel(**budgets) -> MCA:
    """The cascade with other budgets."""
    system = tiny_cascade()
    funnel = dataclasses.replace(UPSTREAM.funnel, **budgets)
    config = dataclasses.replace(UPSTREAM, funnel=funnel)
    upstream = dataclasses.replace(system.upstream, config=config)
    return dataclasses.replace(system, upstream=upstream)


@functools.cache
def tiny_gr() -> GR:
    """The random generator with Peri-CR's creatives and a narrow search."""
    shared = vars(with_beams(tiny_ega(), 6))
    return GR(**shared, peri_cr=tiny_peri_cr(), peri_cr_config=UPSTREAM.peri_cr)
