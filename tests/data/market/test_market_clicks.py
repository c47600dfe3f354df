"""The response model against a loop oracle, and the sign of each effect."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.data.market import clicks
from ega_jax.data.market.clicks import (
    CLICK,
    CONVERT,
    IMAGE,
    SURFACES,
    Situation,
    Truth,
    responses,
)
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.world import make_world

CONFIG = MarketConfig(num_pois=80, num_regions=1, num_users=12, num_sessions=10, num_slots=4)


@pytest.fixture(scope="module")
def world():
    return make_world(CONFIG)


@pytest.fixture(scope="module")
def slates(world):
    """Random slates, some with empty slots, with creatives of their POIs."""
    rng = np.random.default_rng(3)
    b, k = 20, 4
    items = np.stack([rng.choice(80, k, replace=False) for _ in range(b)]).astype(np.int32)
    items[5, 3:], items[6, 1:], items[7, 1], items[8] = -1, -1, -1, -1
    table = np.asarray(world.observables.poi_creatives)
    creatives = np.where(items >= 0, table[items, rng.integers(0, 2, (b, k))], -1).astype(np.int32)
    situation = Situation(
        user=rng.integers(0, 12, b).astype(np.int32),
        intent=rng.integers(0, 80, b).astype(np.int32),
        place=rng.uniform(0, 10, (b, 2)).astype(np.float32),
        hour=rng.uniform(0, 24, b).astype(np.float32),
        surface=rng.integers(0, 3, b).astype(np.int32),
    )
    return situation, items, creatives, rng.random((b, k)) < 0.5


def rows(slates, index):
    return jax.tree.map(lambda x: x[index], slates)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def oracle(world, now, items, creatives, is_ad):
    """The response to one slate, slot by slot, straight from the module's docstring."""
    lat = jax.tree.map(np.asarray, world.latents)
    k = len(items)
    result = np.zeros((3, k))

    def creative(s):
        match = lat.creative_style[creatives[s]] @ lat.user_taste[now.user]
        return clicks.MATCH * match + clicks.APPEAL * lat.creative_appeal[creatives[s]]

    def attraction(s):
        return CLICK.quality * lat.poi_quality[items[s]] + CLICK.creative * creative(s)

    for s in range(k):
        if items[s] < 0:
            continue
        z = lat.poi_latent[items[s]]
        near = sum(
            w * math.exp(4 * lat.poi_latent[f] @ z)
            for w, f in zip(lat.user_weight[now.user], lat.user_favourite[now.user], strict=True)
        )
        parts = {
            "interest": math.log(near) / 4,
            "intent": lat.poi_latent[now.intent] @ z,
            "distance": math.log(1 + math.dist(lat.poi_place[items[s]], now.place)),
            "quality": lat.poi_quality[items[s]],
            "hour": math.cos(2 * math.pi * (now.hour - lat.poi_peak[items[s]]) / 24),
        }
        around = 0.0
        for above in range(s):
            if items[above] >= 0:
                alike = max(lat.poi_latent[items[above]] @ z, 0) ** 2
                around -= clicks.CROWDING * alike + clicks.FATIGUE * is_ad[above]
        beside = [attraction(t) for t in (s - 1, s + 1) if 0 <= t < k and items[t] >= 0]
        if beside:
            around += clicks.CONTRAST * (attraction(s) - sum(beside) / len(beside))

        def utility(weights, parts=parts):
            whole = sum(getattr(weights, name) * x for name, x in parts.items())
            return weights.bias + SURFACES[now.surface] + whole

        seen = 1 / (1 + 0.25 * s)
        for i, weights in enumerate((CLICK, IMAGE)):
            total = utility(weights) + weights.creative * creative(s) + around
            result[i, s] = seen * sigmoid(total)
        result[2, s] = sigmoid(utility(CONVERT))
    return result


def test_responses_equal_the_loop_oracle(world, slates):
    got = responses(world.latents, *slates)
    expected = [oracle(world, *rows(slates, b)) for b in range(len(slates[1]))]
    for i, field in enumerate((got.click_poi, got.click_image, got.convert)):
        np.testing.assert_allclose(field, [e[i] for e in expected], rtol=2e-5, atol=1e-7)


def test_probabilities_are_proper_and_empty_slots_get_none(world, slates):
    items = slates[1]
    for field in jax.tree.leaves(responses(world.latents, *slates)):
        field = np.asarray(field)
        assert np.all((field > 0) & (field < 1) == (items >= 0))
        assert np.all(field[items < 0] == 0)


def test_a_slate_alone_gets_what_it_gets_in_a_batch(world, slates):
    batch = responses(world.latents, *slates).click_poi
    alone = responses(world.latents, *rows(slates, slice(3, 4))).click_poi
    np.testing.assert_allclose(alone[0], batch[3], rtol=1e-5)


def click_rate(world, items, is_ad=None, user=0, intent=0):
    items = np.array([items], np.int32)
    creatives = np.where(items >= 0, np.asarray(world.observables.poi_creatives)[items, 0], -1)
    is_ad = np.zeros(items.shape, bool) if is_ad is None else np.array([is_ad])
    ids = (np.array([user], np.int32), np.array([intent], np.int32))
    now = Situation(*ids, np.full((1, 2), 5.0), np.full(1, 12.0), np.zeros(1, np.int32))
    return np.asarray(responses(world.latents, now, items, creatives, is_ad).click_poi[0])


def test_similar_items_above_take_clicks(world):
    """With equal neighbours in every other respect, an identical latent above costs most."""
    flat = world.latents.replace(poi_quality=jnp.zeros(80))
    z = np.asarray(flat.poi_latent).copy()
    z[1], z[2] = z[0], -z[0]
    twin = world.replace(latents=flat.replace(poi_latent=jnp.asarray(z)))
    below_twin = click_rate(twin, [1, -1, 0, -1])[2]
    below_opposite = click_rate(twin, [2, -1, 0, -1])[2]
    alone = click_rate(twin, [-1, -1, 0, -1])[2]
    assert below_twin < alone
    assert below_opposite == pytest.approx(alone)


def test_ads_above_tire_and_ads_below_do_not(world):
    base = click_rate(world, [3, 4, 5, 6])
    below_ad = click_rate(world, [3, 4, 5, 6], [True, False, False, False])
    assert below_ad[0] == pytest.approx(base[0])
    assert np.all(below_ad[1:] < base[1:])


def test_a_better_neighbour_makes_an_item_less_attractive(world):
    def second(quality):
        latents = world.latents
        changed = latents.replace(poi_quality=latents.poi_quality.at[7].set(quality))
        return click_rate(world.replace(latents=changed), [8, 7, -1, -1])[0]

    assert second(2.0) < second(-2.0)


def test_attention_falls_by_slot_and_never_ends(world):
    seen = np.asarray(clicks.examination(10))
    np.testing.assert_allclose(seen[:3], [1.0, 0.8, 2 / 3], rtol=1e-6)
    assert np.all(np.diff(seen) < 0)
    assert seen[-1] > 0


@pytest.mark.parametrize("field", ["click_poi", "click_image", "convert"])
def test_intent_nearness_and_hour_raise_every_response(world, slates, field):
    now, items, creatives, is_ad = rows(slates, slice(0, 1))
    latents, shown = world.latents, items[0, 0]
    unlike = np.argmin(latents.poi_latent @ latents.poi_latent[shown]).astype(np.int32)

    def response(intent=shown, kilometres=1.0, late=0.0):
        there = now.replace(
            intent=np.array([intent]),
            place=np.asarray(latents.poi_place)[[shown]] + np.float32(kilometres),
            hour=np.asarray(latents.poi_peak)[[shown]] + np.float32(late),
        )
        return float(getattr(responses(latents, there, items, creatives, is_ad), field)[0, 0])

    assert response() > response(intent=unlike)
    assert response(kilometres=0.0) > response() > response(kilometres=20.0)
    assert response() > response(late=6.0) > response(late=12.0)
    assert response(late=24.0) == pytest.approx(response(), rel=1e-4)


def test_truth_survives_saving(world, slates, tmp_path):
    situation, *slate = slates
    Truth(world.latents, situation).save(tmp_path)
    sessions = np.array([4, 0, 6], np.int32)
    got = Truth.load(tmp_path).responses(sessions, *(x[sessions] for x in slate))
    expected = responses(world.latents, *rows(slates, sessions))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_a_log_without_truth_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no known truth"):
        Truth.load(tmp_path)
