"""Creatives by clicks: of each POI the creative that the reward model likes best, alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny_models import levers, one, random_requests, serve, tiny_ega, with_beams

from ega_jax.reward import model as reward_model

ROWS = 8
REQUESTS = random_requests(7, ROWS)


def by_clicks():
    """The system with reward parameters under which the creatives of a POI differ clearly."""
    few = with_beams(tiny_ega(), 8)
    louder = jax.tree.map(lambda x: 3.0 * x if x.ndim > 1 else x, few.reward)
    config = dataclasses.replace(few.config, creatives_by="clicks")
    return dataclasses.replace(few, reward=louder, config=config)


def most_clicked(system, request, poi):
    """The creative of a POI with the highest predicted click rate, by a loop."""
    owned = [int(c) for c in system.items.catalogue.poi_creatives[poi] if c >= 0]
    memory = system.encode_for_reward(request)
    rates = [
        reward_model.predict(
            system.reward, system.config.reward, system.items, memory,
            jnp.array([poi]), jnp.array([creative]), jnp.array([True]),
        ).click_poi[0]
        for creative in owned
    ]  # fmt: skip
    return owned[int(np.argmax(rates))]


def test_every_slate_shows_the_most_clicked_creatives():
    system = by_clicks()
    _, shown, _ = jax.device_get(serve(system, REQUESTS, levers()))
    poi, creative = shown.item, shown.creative
    assert (creative[poi < 0] == -1).all()
    later = 0
    for row, slot in np.argwhere(poi >= 0):
        expected = most_clicked(system, one(REQUESTS, row), int(poi[row, slot]))
        assert creative[row, slot] == expected
        later += expected != system.items.catalogue.poi_creatives[poi[row, slot], 0]
    assert later > 0


def test_without_creatives_none_is_shown():
    system = by_clicks()
    catalogue = system.items.catalogue
    none = dataclasses.replace(
        catalogue, poi_creatives=jnp.zeros((len(catalogue.poi_codes), 0), int)
    )
    items = dataclasses.replace(system.items, catalogue=none)
    bare = dataclasses.replace(system, items=items)
    _, shown, _ = jax.device_get(serve(bare, REQUESTS, levers()))
    assert (shown.creative == -1).all()
    assert (shown.item >= 0).any()
