"""The merging of queues against a plain search, the loss by hand, and that it learns to wait."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_market import MARKET, small_market
from tiny_log import shaken

from ega_jax.baselines.cascade import arrangements, cross_dqn
from ega_jax.baselines.cascade.arrangements import Queues, candidates_of_screen
from ega_jax.baselines.cascade.cross_dqn import CrossDQNConfig, CrossDQNPhaseSettings
from ega_jax.training.loop import train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from ega_jax.training.state import TrainState, make_train_step

K, M, N, L, F, ROWS = 6, 2, 10, 4, 3, 128
CONFIG = CrossDQNConfig(num_slots=K, screen=M, width=16, num_heads=2, hidden=32, discount=0.95)
KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, ROWS)
LIMITS = np.full(ROWS, L, np.int32), np.zeros(ROWS, np.int32)  # That nothing breaks.
RNG = np.random.default_rng


def per_request(function, shared=0):
    """A function of sizes and one request, after `shared` arguments, compiled for a batch."""
    axes = (None,) * shared

    def batched(*x):
        one = lambda *x: function(*x[:shared], CONFIG, *x[shared:])
        return jax.vmap(one, (*axes, *(0,) * (len(x) - shared)))(*x)

    return jax.jit(batched)


CANDIDATES = per_request(lambda config, *x: candidates_of_screen(config.screen, *x))
Q = per_request(cross_dqn.q_values, 1)
PLACE = per_request(lambda *x: cross_dqn.rollout(*x).chosen[-1], 1)


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda key: cross_dqn.init(key, CONFIG, F))(KEY), noise=0.5)


def random_queues(seed=0, rows=ROWS):
    """Up to L ads and N - L organic items, in shuffled places; the first request has neither."""
    rng = RNG(seed)
    order = np.stack([rng.permutation(N) for _ in range(rows)]).astype(np.int32)
    is_ad = np.zeros((rows, N), bool)
    np.put_along_axis(is_ad, order[:, :L], True, axis=1)
    cut = lambda queue: np.where(
        np.arange(queue.shape[1]) < rng.integers(0, queue.shape[1] + 1, (rows, 1)), queue, -1
    )
    ads, organic = cut(order[:, :L]), cut(order[:, L:])
    ads[0] = organic[0] = -1
    return Queues(
        state=rng.normal(size=(rows, N, F)).astype(np.float32),
        quality=rng.uniform(0.01, 0.3, (rows, N)).astype(np.float32),
        bid=np.where(is_ad, rng.lognormal(size=(rows, N)), 0).astype(np.float32),
        is_ad=is_ad,
        ads=ads,
        organic=organic,
    )


def random_limits(seed=0):
    rng = RNG(seed)
    return rng.integers(0, L + 1, ROWS).astype(np.int32), rng.integers(0, 4, ROWS).astype(np.int32)


def real(queue):
    return [item for item in queue.tolist() if item >= 0]


def within_limits(slate, ads, max_ads, min_gap):
    slots = [slot for slot, item in enumerate(slate) if item in ads]
    near = any(b - a - 1 < min_gap for a, b in itertools.pairwise(slots))
    return len(slots) <= max_ads and not near


def continuations(slate, ads, organic, length, max_ads, min_gap):
    """All ways to extend a slate, one item after another, as far as possible but to a length."""
    found, heads = [], [next((x for x in q if x not in slate), None) for q in (ads, organic)]
    for item in heads if len(slate) < length else ():
        longer = [*slate, item]
        if item is not None and within_limits(longer, ads, max_ads, min_gap):
            found += continuations(longer, ads, organic, length, max_ads, min_gap)
    most = max(map(len, found), default=0)
    return [x for x in found if len(x) == most] or [slate]


def test_arrangements_are_all_there_are():
    found = arrangements.arrangements(3)
    assert found.shape == (8, 3)
    assert not found[0].any()
    assert {tuple(row) for row in found.tolist()} == {
        (a, b, c) for a in (True, False) for b in (True, False) for c in (True, False)
    }
    with pytest.raises(ValueError, match="3 slots do not fill 4"):
        CrossDQNConfig(num_slots=4, screen=3)


def test_admissible_arrangements_by_a_search():
    queues, limits, rng = random_queues(), random_limits(), RNG(1)
    now, seen = np.full((ROWS, K), -1, np.int32), set()
    for screen in range(K // M):
        slates, where = CANDIDATES(queues, now, np.full(ROWS, screen, np.int32), *limits)
        slates, where = np.asarray(slates), np.asarray(where)
        for row in range(ROWS):
            ads, organic = real(queues.ads[row]), real(queues.organic[row])
            expected = continuations(
                real(now[row]), ads, organic, (screen + 1) * M, limits[0][row], limits[1][row]
            )
            found = [real(slate) for slate in slates[row][where[row]]]
            assert sorted(found) == sorted(expected)
            assert all(
                (slate[: len(x)] >= 0).all()
                for slate, x in zip(slates[row][where[row]], found, strict=True)
            )
            seen.add(len(found))
            now[row] = slates[row][rng.choice(np.flatnonzero(where[row]))]
    assert seen == {1, 2, 3, 4}


@pytest.mark.parametrize("explores", [False, True])
def test_slates_keep_order_and_limits(params, explores):
    queues, limits = random_queues(1), random_limits(1)
    more = (KEYS, np.full(ROWS, 0.7, np.float32)) if explores else ()
    slates = np.asarray(PLACE(params, queues, *limits, *more))
    for row, slate in enumerate(slates):
        ads, organic, shown = real(queues.ads[row]), real(queues.organic[row]), real(slate)
        assert shown == slate[: len(shown)].tolist()
        assert [x for x in shown if x in ads] == ads[: sum(x in ads for x in shown)]
        assert [x for x in shown if x in organic] == organic[: sum(x in organic for x in shown)]
        assert within_limits(shown, ads, limits[0][row], limits[1][row])
        assert len(shown) >= min(K, len(organic))
    no_ads = np.asarray(PLACE(params, queues, np.zeros_like(limits[0]), *limits[1:], *more))
    np.testing.assert_array_equal(no_ads, queues.organic)


def test_each_screen_takes_the_best_or_explores_evenly(params):
    queues, limits = random_queues(2), random_limits(2)
    slates = np.asarray(PLACE(params, queues, *limits))
    never = PLACE(params, queues, *limits, KEYS, np.zeros(ROWS, np.float32))
    np.testing.assert_array_equal(never, slates)
    now = np.full((ROWS, K), -1, np.int32)
    for screen in range(K // M):
        number = np.full(ROWS, screen, np.int32)
        options, where = CANDIDATES(queues, now, number, *limits)
        values = np.where(where, Q(params, queues, options, number), -np.inf)
        now = np.asarray(options)[np.arange(ROWS), values.argmax(1)]
    np.testing.assert_array_equal(now, slates)

    full = jax.tree.map(lambda x: np.broadcast_to(x[:1], x.shape), queues)
    full = dataclasses.replace(
        full,
        ads=np.tile(np.int32([0, 1, 2, 3]), (ROWS, 1)),
        organic=np.tile(np.int32([4, 5, 6, 7, 8, 9]), (ROWS, 1)),
        is_ad=np.tile(np.arange(N) < L, (ROWS, 1)),
    )
    random = np.asarray(PLACE(params, full, *LIMITS, KEYS, np.ones(ROWS, np.float32)))
    first = [tuple(x) for x in (random[:, :M] < L).tolist()]
    shares = [first.count(x) / ROWS for x in set(first)]
    assert len(shares) == 4
    np.testing.assert_allclose(shares, 0.25, atol=4 * (0.19 / ROWS) ** 0.5)


def some_slates(params, seed=3):
    """Queues, slates `[ROWS, 2, K]` after the second screen, and its number."""
    queues, always = random_queues(seed), np.ones(ROWS, np.float32)
    draw = lambda keys: np.asarray(PLACE(params, queues, *LIMITS, keys, always))
    slates = np.stack([draw(KEYS), draw(KEYS[::-1])], axis=1)
    return queues, np.where(np.arange(K) < 2 * M, slates, -1), np.ones(ROWS, np.int32)


def test_unit_places_and_what_is_not_queued_do_not_matter(params):
    queues, slates, screen = some_slates(params)
    before = Q(params, queues, slates, screen)
    rng, order = RNG(0), RNG(1).permutation(N)
    move = lambda ids: np.where(ids >= 0, np.argsort(order)[ids], -1).astype(np.int32)
    moved = jax.tree.map(lambda x: x[:, order] if x.shape[1] == N else move(x), queues)
    listed = np.concatenate([queues.ads, queues.organic], axis=1)
    absent = ~(np.arange(N) == listed[..., None]).any(1)
    noise = lambda x: rng.uniform(1, 9, x.shape).astype(np.float32)
    hidden = dataclasses.replace(
        queues,
        state=np.where(absent[..., None], noise(queues.state), queues.state),
        quality=np.where(absent, noise(queues.quality), queues.quality),
        bid=np.where(absent, noise(queues.bid), queues.bid),
    )
    scaled = dataclasses.replace(queues, bid=queues.bid * 100)
    for same, where in ((moved, move(slates)), (hidden, slates), (scaled, slates)):
        np.testing.assert_allclose(Q(params, same, where, screen), before, atol=1e-4)
    scale = jax.jit(jax.vmap(arrangements.ecpm_scale))
    for row, found in enumerate(np.asarray(scale(queues))):
        worth = [queues.bid[row, ad] * queues.quality[row, ad] for ad in real(queues.ads[row])]
        assert found == pytest.approx(np.mean(worth) if worth else 1, rel=1e-5)


def test_mixed_precision_is_near(params):
    queues, slates, screen = some_slates(params)
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    values = jax.jit(jax.vmap(lambda *x: cross_dqn.q_values(params, half, *x)))
    found, exact = values(queues, slates, screen), Q(params, queues, slates, screen)
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_every_input_counts_as_long_as_it_may(params):
    queues, slates, screen = some_slates(params)
    before = np.asarray(Q(params, queues, slates, screen))
    shows = (slates[:, :, M : 2 * M] >= 0).any(-1)
    assert np.all(before[~shows] == 0)
    ads = (queues.is_ad[np.arange(ROWS)[:, None, None], slates] & (slates >= 0)).any(-1) & shows
    changes = {
        "state": (np.roll(queues.state, 1, -1), shows),
        "quality": (queues.quality**2, shows),
        "bid": (queues.bid**2, ads & ((queues.ads >= 0).sum(1) > 1)[:, None]),
        "is_ad": (~queues.is_ad, shows),
    }
    for name, (value, where) in changes.items():
        after = Q(params, dataclasses.replace(queues, **{name: value}), slates, screen)
        assert np.mean(np.abs(after - before)[where] > 1e-4) > 0.95, name
    shorter = np.where(np.arange(N - L) < 4, queues.organic, -1)
    changed = dataclasses.replace(queues, organic=shorter)
    left = (queues.organic >= 0).sum(1)[:, None] > 4
    near = shows & left & (_organic_in(queues, slates) > 4 - M)
    moved = np.abs(Q(params, changed, slates, screen) - before) > 1e-5
    same = shows & (_organic_in(queues, slates) <= 4 - M)
    assert moved[near].mean() > 0.95
    assert not moved[same].any()
    assert np.all(np.asarray(Q(params, queues, slates, screen + 1)) == 0), "still empty"


def test_the_last_screen_has_no_future(params):
    queues = random_queues(3)
    slates = np.asarray(PLACE(params, queues, *LIMITS))[:, None]
    unused = np.arange(N - L) >= _organic_in(queues, slates)
    assert (unused & (queues.organic >= 0)).any(1).sum() > 10
    without = dataclasses.replace(queues, organic=np.where(unused, -1, queues.organic))
    last = np.full(ROWS, K // M - 1)
    after = Q(params, without, slates, last)
    np.testing.assert_allclose(after, Q(params, queues, slates, last), atol=1e-5)


def _organic_in(queues, slates):
    is_ad = queues.is_ad[np.arange(ROWS)[:, None, None], slates]
    return ((slates >= 0) & ~is_ad).sum(-1)


def test_target_by_hand():
    reward, next_q = jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0])
    target = cross_dqn.td_target(reward, next_q, jnp.array([False, True]), 0.5)
    np.testing.assert_allclose(target, [6.0, 2.0])
    through = jax.grad(lambda q: cross_dqn.td_target(reward, q, jnp.array(False), 0.5).sum())
    assert not np.any(through(next_q))


WEIGHT = np.array([0.5, 0.5, 0.5, 1, 1, 1], np.float32)  # Users warm up.


def after_organic(queues, slates):
    """A judge: an ad's eCPM, by where it stands, and a fifth if no organic item is above it."""
    take = jax.vmap(lambda values, slate: values[slate])
    ecpm, is_ad = (take(x, slates) for x in (queues.bid * queues.quality, queues.is_ad))
    organic_above = jnp.pad(~is_ad[:, :-1] & (slates[:, :-1] >= 0), ((0, 0), (1, 0)))
    return jnp.where(is_ad, ecpm * WEIGHT * jnp.where(organic_above, 1, 0.2), 0.0)


def reward_by_hand(queues, row, slate):
    total = 0.0
    for slot, item in enumerate(real(slate)):
        if queues.is_ad[row, item]:
            follows = slot > 0 and not queues.is_ad[row, slate[slot - 1]]
            ecpm = queues.bid[row, item] * queues.quality[row, item]
            total += WEIGHT[slot] * (1 if follows else 0.2) * ecpm
    return total


EPSILON, TAU = 0.4, 0.2
OPTIMIZER = optax.adam(5e-3)
judged = lambda queues: (queues, functools.partial(after_organic, queues))
LOSS = cross_dqn.cross_dqn_loss(CONFIG, judged, EPSILON, TAU, max_ads=L)
STEP = jax.jit(make_train_step(LOSS, OPTIMIZER, KEY))


def preferred_by_hand(params, queues, slates, screen):
    """What the network would do in a screen after the slates, whose later slots are not known."""
    before, number = np.where(np.arange(K) < screen * M, slates, -1), np.full(ROWS, screen)
    options, where = CANDIDATES(queues, before, number, *LIMITS)
    values = np.where(where, Q(params, queues, options, number), -np.inf)
    return np.asarray(options)[np.arange(ROWS), values.argmax(1)]


def test_loss_by_hand_with_finite_gradients(params):
    queues, target_params = random_queues(4), shaken(params, seed=5)
    state, metrics = STEP(TrainState.create(params, OPTIMIZER, target_params), queues)
    keys = jax.random.split(jax.random.fold_in(KEY, 0), ROWS)
    slates = np.asarray(PLACE(params, queues, *LIMITS, keys, np.full(ROWS, EPSILON, np.float32)))
    online, target, explored = [], [], 0
    for s in range(K // M):
        best = preferred_by_hand(params, queues, slates, s)
        chosen = np.where(np.arange(K) < (s + 1) * M, slates, -1)
        explored += (best != chosen).any(1).sum()
        value = lambda p, x, s=s: np.asarray(Q(p, queues, x[:, None], np.full(ROWS, s)))[:, 0]
        online.append(value(params, chosen))
        target.append(value(target_params, best))
    assert 0.05 < explored / (ROWS * K / M) < EPSILON
    terms, rewards = [], []
    for row, slate in enumerate(slates):
        worth = [queues.bid[row, ad] * queues.quality[row, ad] for ad in real(queues.ads[row])]
        upto = [reward_by_hand(queues, row, slate[: s * M]) for s in range(K // M + 1)]
        rewards.append(upto[-1])
        for s in range(K // M):
            if slate[s * M] >= 0:
                later = 0.95 * target[s + 1][row] if s + 1 < K // M else 0
                earned = (upto[s + 1] - upto[s]) / (np.mean(worth) if worth else 1)
                error = abs(online[s][row] - earned - later)
                terms.append(error**2 / 2 if error < 1 else error - 0.5)
    assert metrics["loss"] == pytest.approx(np.mean(terms), rel=1e-4)
    assert metrics["td_loss"] == metrics["loss"]
    assert metrics["reward"] == pytest.approx(np.mean(rewards), rel=1e-4)
    moved = jax.tree.map(lambda x, y: TAU * x + (1 - TAU) * y, params, target_params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), state.variables, moved)
    assert 1e-3 < metrics["grad_norm"] < 1e3


def test_it_learns_to_wait():
    """On requests that it never saw: most of what is left between chance and the best slates."""
    fresh, queues = jax.jit(lambda key: cross_dqn.init(key, CONFIG, F))(KEY), random_queues(5)
    state = TrainState.create(fresh, OPTIMIZER, fresh)
    for _ in range(150):
        state, _ = STEP(state, queues)
    queues = random_queues(6)
    earned = lambda slates: np.mean(
        [reward_by_hand(queues, row, np.asarray(slate, int)) for row, slate in enumerate(slates)]
    )
    everything = np.ones(ROWS, np.float32)
    random = earned(np.asarray(PLACE(fresh, queues, *LIMITS, KEYS, everything)))
    found = earned(np.asarray(PLACE(state.params, queues, *LIMITS)))
    best, ads_first = [], []
    for row in range(ROWS):
        ads, organic = real(queues.ads[row]), real(queues.organic[row])
        slates = continuations([], ads, organic, K, L, 0)
        best.append(
            max(slates, key=lambda x, row=row: reward_by_hand(queues, row, np.array(x, int)))
        )
        ads_first.append((ads + organic)[:K])
    best, naive = earned(best), max(random, earned(ads_first))
    assert best > 1.3 * naive
    assert found - naive > 0.5 * (best - naive)


def test_a_phase_trains_and_is_measured(tmp_path):
    """Where only ads earn, in any slot, the best slates hold as many as they may."""
    dataset, _ = small_market()
    config = CrossDQNConfig(num_slots=MARKET.num_slots, screen=1, width=8, num_heads=2, hidden=8)

    def view(batch):
        order = lambda where: jnp.where(
            jnp.sort(~where, axis=1), -1, jnp.argsort(~where, axis=1, stable=True)
        )
        real, is_ad = batch["item"] >= 0, batch["is_ad"]
        state = jax.nn.one_hot(batch["item"] % F, F)
        queues = order(real & is_ad), order(real & ~is_ad)
        queues = Queues(state, jnp.full(real.shape, 0.1), 5.0 * is_ad, is_ad, *queues)
        return queues, lambda slates: 0.5 * jnp.take_along_axis(is_ad, slates, axis=1)

    settings = CrossDQNPhaseSettings(
        batch_size=32, num_steps=30, learning_rate=1e-2, schedule="constant", warmup_steps=0,
        clip_norm=None, checkpoint_every=30, log_every=5, evaluate_every=30, tau=0.1,
    )  # fmt: skip
    phase = cross_dqn.cross_dqn_phase(
        dataset, config, settings, 0, history_length=MARKET.history_length, state_width=F,
        view=view, max_ads=2, min_gap=1,
    )  # fmt: skip
    assert phase.name == "cross_dqn"
    state = train(phase, workdir=tmp_path, config={}, mesh=data_mesh(jax.devices()[:1]))
    gap = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), state.params, state.variables)
    assert all(0 < x < 1 for x in jax.tree.leaves(gap))
    records = read_metrics(tmp_path / "metrics" / "cross_dqn.jsonl")
    assert {"loss", "td_loss", "reward"} <= records[-1].keys()
    assert records[-1]["eval/reward"] == pytest.approx(1, rel=0.02)
    assert records[0]["reward"] < 0.9
    assert all(record["reward"] <= 1 + 1e-5 for record in records), "limits hold in training"
