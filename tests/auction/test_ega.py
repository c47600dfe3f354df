"""The slate that wins: against lists of every slate, and under every lever."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import (
    ALL_BEAMS,
    K,
    N,
    alone,
    levers,
    one,
    random_requests,
    serve,
    tiny_ega,
    with_beams,
    with_bid,
    without,
)

from ega_jax.generation.reports import ABSENT, Report, absent
from ega_jax.reward import model as reward_model

REQUESTS = random_requests(0, 24)


def every_slate(request):
    """All full-length slates: organic items in order, ads anywhere, padded when all are used.

    A POI that is both is shown once.
    """
    ads = [i for i in range(N) if request.item[i] >= 0 and request.is_ad[i]]
    organic = [i for i in range(N) if request.item[i] >= 0 and not request.is_ad[i]]

    def grow(slate):
        shown = [request.item[i] for i in slate]
        passed = max((organic.index(i) for i in slate if i in organic), default=-1)
        next_organic = [i for i in organic[passed + 1 :] if request.item[i] not in shown][:1]
        options = [i for i in ads if request.item[i] not in shown] + next_organic
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


def true_values(system, prepared, request, creatives, listed, kappa):
    """Values of slates of one request, each a tuple of candidates with creatives `[N]`."""
    room = np.full((ALL_BEAMS, K), -1)
    room[: len(listed)] = listed
    pick = lambda values, empty: np.where(room >= 0, np.asarray(values)[room], empty)
    item, creative, is_ad = (
        pick(request.item, -1),
        pick(creatives, -1),
        pick(request.is_ad, False),
    )
    pctr = click_rates(system, prepared.reward_memory, item, creative, is_ad)
    return ((pick(request.bid, 0.0) + kappa) * pctr).sum(-1)[: len(listed)]


@pytest.mark.parametrize("kappa", [0.0, 3.0])
def test_with_all_beams_the_best_of_all_slates_wins(kappa):
    system = tiny_ega()
    prepared, allocations, menus = serve(system, REQUESTS, levers(kappa=kappa))
    creatives, _ = alone(system, prepared, REQUESTS)
    for row in range(24):
        request, of_row = one(REQUESTS, row), (one(prepared, row), one(REQUESTS, row))
        slates = every_slate(request)
        # Items of equal codes are interchangeable to the search: it lists the higher bid first.
        listed = {tuple(s) for s in np.asarray(menus.candidate[row])[menus.where[row]]}
        assert listed <= slates
        values = true_values(system, *of_row, creatives[row], sorted(listed), kappa)
        won = sorted(listed).index(tuple(np.asarray(allocations.candidate[row]).tolist()))
        np.testing.assert_allclose(values[won], max(values), rtol=1e-5)
        codes = [tuple(c) for c in np.asarray(system.items.catalogue.poi_codes)[request.item]]
        if len({codes[i] for i in range(N) if request.item[i] >= 0}) == (request.item >= 0).sum():
            assert listed == slates


def test_a_poi_that_is_ad_and_organic_is_shown_once():
    """With all beams, against a list of all slates: the queue skips only what the slate shows."""
    item, is_ad = np.array(REQUESTS.item), np.array(REQUESTS.is_ad)
    for row in range(24):
        organic = np.flatnonzero((item[row] >= 0) & ~is_ad[row])
        if is_ad[row].any() and organic.size:
            item[row, organic[row % organic.size]] = item[row, 0]
    requests, both = REQUESTS.replace(item=item), 0
    _, _, menus = serve(tiny_ega(), requests, levers())
    poi_codes = np.asarray(tiny_ega().items.catalogue.poi_codes)
    for row in range(24):
        request, there = one(requests, row), item[row] >= 0
        slates = every_slate(request)
        listed = {tuple(s) for s in np.asarray(menus.candidate[row])[menus.where[row]]}
        assert listed <= slates
        pois = set(item[row, there].tolist())
        if len({tuple(poi_codes[poi]) for poi in pois}) == len(pois):
            # An ad is preferred to the organic item of its POI: the search offers one of the two.
            offered = {s for s in slates if not prefers_organic(request, s)}
            assert listed == offered
            both += len(pois) < there.sum()
    assert both > 2


def prefers_organic(request, slate):
    """Whether a slate shows a POI as an organic item although its ad was available."""
    ads = request.item[(request.item >= 0) & request.is_ad]
    return any(i >= 0 and not request.is_ad[i] and request.item[i] in ads for i in slate)


@pytest.mark.parametrize("bid_free", [False, True])
def test_what_is_shown_agrees_with_the_request(bid_free):
    system = tiny_ega()
    prepared, shown, _ = serve(system, REQUESTS, levers(bid_free=bid_free))
    quality = alone(system, prepared, REQUESTS)[1]
    candidate = np.asarray(shown.candidate)
    owner = {c: p for p, cs in enumerate(system.items.catalogue.poi_creatives) for c in cs.tolist()}
    for row in range(len(candidate)):
        request = one(REQUESTS, row)
        for slot, place in enumerate(candidate[row]):
            if place < 0:
                assert shown.item[row, slot] == shown.creative[row, slot] == -1
                assert shown.bid[row, slot] == shown.prediction.click_poi[row, slot] == 0
                assert shown.quality[row, slot] == 0
                continue
            assert shown.item[row, slot] == request.item[place]
            assert owner[int(shown.creative[row, slot])] == request.item[place]
            assert shown.is_ad[row, slot] == request.is_ad[place]
            assert shown.bid[row, slot] == request.bid[place]
            np.testing.assert_allclose(shown.quality[row, slot], quality[row, place], rtol=1e-5)
            assert shown.quality[row, slot] > 0
        filled = (candidate[row] >= 0).sum()
        assert filled == min(K, (request.item >= 0).sum())


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


@pytest.mark.parametrize("scope", ["prefix", "layer"])
def test_no_bid_of_a_single_ad_changes_a_bid_free_menu(scope):
    """Neither in its list nor in a report; a report of its bid leads to what its list does."""
    few = with_beams(tiny_ega(), 4)
    few = few.replace(config=dataclasses.replace(few.config, scope=scope))
    settings, rng = levers(bid_free=True), np.random.default_rng(0)
    prepared, _, before = serve(few, REQUESTS, settings)
    moved = 0
    for report in (0.0, 0.7, 1e6):
        ad = np.argmax(rng.random(REQUESTS.bid.shape) * REQUESTS.is_ad, axis=1)
        ad = np.where(REQUESTS.is_ad.any(1), ad, -1).astype(np.int32)
        own = (np.arange(N) == ad[:, None]) & (ad >= 0)[:, None]
        bid = np.where(own, np.float32(report), REQUESTS.bid)
        _, shown, after = serve(few, REQUESTS.replace(bid=bid), settings)
        reports = Report(ad[:, None], np.full((24, 1), report, np.float32))
        found = jax.jit(jax.vmap(few.allocate_each))(prepared, reports)
        reported, joint = jax.tree.map(lambda x: x[:, 0], found)
        for name in ("candidate", "item", "creative", "is_ad", "where"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
            np.testing.assert_array_equal(getattr(before, name), getattr(joint, name))
        live = np.asarray(before.where)
        for name in ("quality", "pctr", "log_z", "states"):
            of_lists = [np.asarray(getattr(menu, name))[live] for menu in (before, after)]
            np.testing.assert_array_equal(*of_lists)
            of_reports = np.asarray(getattr(joint, name))[live]
            np.testing.assert_allclose(of_lists[0], of_reports, atol=1e-4)
        np.testing.assert_array_equal(after.bid[live], joint.bid[live])
        np.testing.assert_array_equal(shown.candidate, reported.candidate)
        np.testing.assert_array_equal(shown.creative, reported.creative)
        moved += (after.value.argmax(-1) != before.value.argmax(-1)).sum()
    assert moved > 0, "the choice among the slates follows bids"


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


def test_an_absent_candidate_is_never_shown():
    system, request = tiny_ega(), one(REQUESTS, 2)

    @jax.jit
    def menus(request):
        return system.menus(system.prepare(request, levers()), absent(jnp.arange(-1, N)))

    found = menus(request)
    assert found.where[0].sum() < ALL_BEAMS
    assert {True, False} == set(request.is_ad[request.item >= 0].tolist())
    for candidate in range(N):
        assert (found.candidate[0] == candidate).any() == (request.item[candidate] >= 0)
        assert not (found.candidate[candidate + 1] == candidate).any()
        assert not (found.rivals.ad[candidate + 1] == candidate).any()
        assert found.value[candidate + 1].max() <= found.value[0].max() + 1e-6
        kept = np.asarray(found.candidate[candidate + 1])[found.where[candidate + 1]]
        left = request.replace(item=np.where(np.arange(N) == candidate, -1, request.item))
        assert {tuple(slate) for slate in kept} <= every_slate(left)
        assert len(kept) > 0


def test_reports_together_are_as_lists_of_these_bids_alone():
    """Bids and absences of single ads, against a list of its own for each."""
    few, rng = with_beams(tiny_ega(), 4), np.random.default_rng(0)
    has_organic = (~REQUESTS.is_ad & (REQUESTS.item >= 0)).any(1)
    request = one(REQUESTS, np.argmax(has_organic * REQUESTS.is_ad.sum(1)))
    ads = np.append(-1, np.flatnonzero(request.is_ad))
    candidate = np.resize(ads, 24).astype(np.int32)
    bid = rng.choice([ABSENT, 0.0, 0.6, 1.0, 2.5, 9.0], 24).astype(np.float32)
    assert ((candidate >= 0) & (bid < 0)).any()

    @jax.jit
    def together(request, reports):
        return few.allocate_each(few.prepare(request, levers()), reports)

    lists = jax.tree.map(lambda x: np.broadcast_to(x, (24, *x.shape)), request)
    for number, (ad, report) in enumerate(zip(candidate, bid, strict=True)):
        if ad >= 0 and report < 0:
            lists = without(lists, number, ad)
        elif ad >= 0:
            lists = with_bid(lists, number, ad, report)
    _, each, menus = serve(few, lists, levers())
    shown, joint_menus = together(request, Report(candidate, bid))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, each, shown)
    live = np.asarray(menus.where)
    np.testing.assert_array_equal(menus.where, joint_menus.where)
    for name in ("candidate", "creative", "bid", "quality", "pctr", "log_z"):
        close(np.asarray(getattr(menus, name))[live], np.asarray(getattr(joint_menus, name))[live])
    close(menus.value, joint_menus.value)
    best = {tuple(slate) for slate in np.asarray(each.candidate).tolist()}
    assert len(best) > 1


def test_the_rivals_of_a_menu_are_its_ads():
    few = with_beams(tiny_ega(), 4)
    prepared, _, menus = serve(few, REQUESTS, levers())
    quality = alone(few, prepared, REQUESTS)[1]
    for row in range(24):
        request, menu = one(REQUESTS, row), one(menus, row)
        slates = np.asarray(menu.candidate)[menu.where]
        expected = {n for n in slates.ravel().tolist() if n >= 0 and request.is_ad[n]}
        there = np.asarray(menu.rivals.ad) >= 0
        ads = np.asarray(menu.rivals.ad)[there]
        assert set(ads.tolist()) == expected
        np.testing.assert_array_equal(np.asarray(menu.rivals.bid)[there], request.bid[ads])
        np.testing.assert_allclose(
            np.asarray(menu.rivals.quality)[there], quality[row, ads], rtol=1e-5
        )
        score = np.asarray(menu.rivals.score)
        np.testing.assert_allclose(score[there], request.bid[ads] * quality[row, ads], rtol=1e-5)
        assert (score[~there] == 0).all()
