"""The slate that wins: against lists of every slate, and under every lever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    ALL_BEAMS,
    K,
    N,
    levers,
    one,
    random_requests,
    serve,
    tiny_ega,
    with_beams,
)

from ega_jax.reward import model as reward_model

REQUESTS = random_requests(0, 24)


def every_slate(request):
    """All full-length slates: organic items in order, ads anywhere, padded when all are used."""
    ads = [i for i in range(N) if request.item[i] >= 0 and request.is_ad[i]]
    organic = [i for i in range(N) if request.item[i] >= 0 and not request.is_ad[i]]

    def grow(slate):
        next_organic = [i for i in organic if i not in slate][:1]
        options = [i for i in ads if i not in slate] + next_organic
        if len(slate) == K or not options:
            yield (*slate, *[-1] * (K - len(slate)))
            return
        for item in options:
            yield from grow((*slate, item))

    return set(grow(()))


@jax.jit
def click_rates(system, memory, slates, creatives, is_ad):
    """Click probabilities of slates `[M, K]`, by a pass of the reward model of their own."""
    return reward_model.predict(
        system.reward, system.config.reward, system.items, memory, slates, creatives, is_ad
    ).click_poi


def true_values(system, prepared, request, listed, kappa):
    """Values of slates of one request, each a tuple of candidates."""
    room = np.full((ALL_BEAMS, K), -1)
    room[: len(listed)] = listed
    pick = lambda values, empty: np.where(room >= 0, np.asarray(values)[room], empty)
    item, creative, is_ad = (
        pick(request.item, -1),
        pick(prepared.creative, -1),
        pick(request.is_ad, False),
    )
    pctr = click_rates(system, prepared.reward_memory, item, creative, is_ad)
    return ((pick(request.bid, 0.0) + kappa) * pctr).sum(-1)[: len(listed)]


@pytest.mark.parametrize("kappa", [0.0, 3.0])
def test_with_all_beams_the_best_of_all_slates_wins(kappa):
    system = tiny_ega()
    prepared, allocations, menus = serve(system, REQUESTS, levers(kappa=kappa))
    for row in range(24):
        request, alone = one(REQUESTS, row), one(prepared, row)
        slates = every_slate(request)
        # Items of equal codes are interchangeable to the search: it lists the higher bid first.
        listed = {tuple(s) for s in np.asarray(menus.candidate[row])[menus.where[row]]}
        assert listed <= slates
        values = true_values(system, alone, request, sorted(listed), kappa)
        won = sorted(listed).index(tuple(np.asarray(allocations.candidate[row]).tolist()))
        np.testing.assert_allclose(values[won], max(values), rtol=1e-5)
        codes = [tuple(c) for c in np.asarray(system.items.catalogue.poi_codes)[request.item]]
        if len({codes[i] for i in range(N) if request.item[i] >= 0}) == (request.item >= 0).sum():
            assert listed == slates


def test_what_is_shown_agrees_with_the_request():
    system = tiny_ega()
    prepared, shown, _ = serve(system, REQUESTS, levers())
    candidate = np.asarray(shown.candidate)
    owner = {c: p for p, cs in enumerate(system.items.catalogue.poi_creatives) for c in cs.tolist()}
    for row in range(len(candidate)):
        request = one(REQUESTS, row)
        for slot, place in enumerate(candidate[row]):
            if place < 0:
                assert shown.item[row, slot] == shown.creative[row, slot] == -1
                assert shown.bid[row, slot] == shown.prediction.click_poi[row, slot] == 0
                continue
            assert shown.item[row, slot] == request.item[place]
            assert owner[int(shown.creative[row, slot])] == request.item[place]
            assert shown.is_ad[row, slot] == request.is_ad[place]
            assert shown.bid[row, slot] == request.bid[place]
        filled = (candidate[row] >= 0).sum()
        assert filled == min(K, (request.item >= 0).sum())
    assert (prepared.quality[REQUESTS.item >= 0] > 0).all()


def test_a_request_does_not_see_its_batch():
    system = tiny_ega()
    _, before, _ = serve(system, REQUESTS, levers())
    other = random_requests(9, 24)
    mixed = jax.tree.map(lambda x, y: np.concatenate([x[:1], y[1:]]), REQUESTS, other)
    _, after, _ = serve(system, mixed, levers())
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[0], y[0]), before, after)


def test_reserve_limits_and_gaps_hold():
    system = tiny_ega()
    _, shown, _ = serve(system, REQUESTS, levers(reserve=1.0, max_ads=1, min_gap=1))
    assert (shown.bid[shown.is_ad] >= 1.0).all()
    assert (shown.is_ad.sum(-1) <= 1).all()
    assert shown.is_ad.any()
    _, free, _ = serve(system, REQUESTS, levers())
    assert (free.is_ad.sum(-1) > 1).any()
    assert (np.asarray(free.bid)[free.is_ad] < 1.0).any()


def test_a_bid_free_menu_does_not_move_with_bids():
    few = with_beams(tiny_ega(), 4)
    louder = REQUESTS.replace(bid=REQUESTS.bid * np.float32(7))
    _, _, quiet_menu = serve(few, REQUESTS, levers(bid_free=True))
    _, _, loud_menu = serve(few, louder, levers(bid_free=True))
    np.testing.assert_array_equal(quiet_menu.candidate, loud_menu.candidate)
    _, _, quiet = serve(few, REQUESTS, levers())
    _, _, loud = serve(few, louder, levers())
    assert (quiet.candidate != loud.candidate).any()


def test_alpha_raises_bids_and_beta_lowers_the_share_of_ads():
    """Figure 5's shape, on average over requests, with a search too narrow to see everything."""
    few = with_beams(tiny_ega(), 4)
    batches = [random_requests(seed, 24) for seed in range(20, 30)]

    def measure(**changes):
        shown = [serve(few, requests, levers(**changes))[1] for requests in batches]
        bids = np.mean([np.asarray(each.bid).sum(-1) for each in shown])
        return bids, np.mean([np.asarray(each.is_ad) for each in shown])

    bids = [measure(alpha=a)[0] for a in (0.5, 1.2, 2.5)]
    shares = [measure(beta=b)[1] for b in (0.1, 2.0, 50.0)]
    assert bids == sorted(bids)
    assert bids[-1] > bids[0]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] < shares[0]


def test_a_banned_candidate_is_never_shown():
    system, request = tiny_ega(), one(REQUESTS, 2)

    @jax.jit
    def menus(request):
        prepared = system.prepare(request)
        bids = jnp.broadcast_to(request.bid, (N + 1, N))
        return system.find_menus(prepared, bids, levers(), jnp.arange(-1, N))

    found = menus(request)
    assert found.where[0].sum() < ALL_BEAMS
    for candidate in range(N):
        assert (found.candidate[0] == candidate).any() == (request.item[candidate] >= 0)
        assert not (found.candidate[candidate + 1] == candidate).any()
        assert found.value[candidate + 1].max() <= found.value[0].max() + 1e-6


def test_variants_together_are_as_alone():
    few, request = with_beams(tiny_ega(), 4), one(REQUESTS, 5)
    rng = np.random.default_rng(0)
    bids = request.bid * rng.choice([0.0, 0.5, 1.0, 3.0], (24, N)).astype(np.float32)

    @jax.jit
    def together(request, bids):
        return few.allocate_each(few.prepare(request), bids, levers())

    variants = jax.tree.map(lambda x: np.broadcast_to(x, (24, *x.shape)), request)
    _, alone, menus = serve(few, variants.replace(bid=bids), levers())
    shown, joint_menus = together(request, bids)
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, alone, shown)
    live = np.asarray(menus.where)
    np.testing.assert_array_equal(menus.candidate, joint_menus.candidate)
    close(np.asarray(menus.pctr)[live], np.asarray(joint_menus.pctr)[live])
    close(menus.value, joint_menus.value)
