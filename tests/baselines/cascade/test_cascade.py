"""The cascade as an allocation: each stage by a loop, what holds of slates, and its mechanism."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import CASCADE, RECALLED, UPSTREAM, tiny_cascade
from tiny_models import LEVERS, K, N, levers, one, random_requests, tiny_ega

from ega_jax.auction.pricing import PricingConfig
from ega_jax.baselines.cascade.arrangements import Queues
from ega_jax.baselines.cascade.cga import Ads
from ega_jax.baselines.cascade.mca import ads_of, cga, cross_dqn, queues_of
from ega_jax.baselines.cascade.upstream import hstu, peri_cr
from ega_jax.generation.generator import GeneratorDecoder
from ega_jax.generation.reports import Report, absent
from ega_jax.mechanism import Mechanism
from ega_jax.reward import model as reward_model
from ega_jax.types import organic_pois

ROWS = 24
REQUESTS = random_requests(1, ROWS)
LOUDER = REQUESTS.replace(  # Other bids, in another order.
    bid=np.where(REQUESTS.is_ad, np.random.default_rng(0).choice([1.0, 3.0, 9.0], (ROWS, N)), 0.0)
    .astype(np.float32)
)  # fmt: skip
KAPPA = 0.5


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, None))
def allocated(system, request, changed):
    """Prepared requests, allocations and menus: with all candidates, then without each."""
    prepared = system.prepare(request, changed)
    return prepared, *system.allocate_each(prepared, absent(jnp.arange(-1, N)))


@functools.cache
def everything(requests="quiet", **changes):
    """What `allocated` gives, on the host."""
    requests = {"quiet": REQUESTS, "loud": LOUDER}[requests]
    return jax.device_get(allocated(tiny_cascade(), requests, levers(**changes)))


def found(*requests, **changes):
    """What passes the funnel by candidate, allocations and menus with all candidates."""
    prepared, *variants = everything(*requests, **changes)
    passed = prepared.memory
    return by_candidate(passed), *jax.tree.map(lambda x: x[:, 0], variants)


def by_candidate(passed):
    """The arrays `[B, N, ...]` of what passes the funnel; 0 for other candidates."""
    ranked, rows = passed.ranked, np.arange(ROWS)[:, None]

    def scattered(values):
        table = np.zeros((ROWS, N + 1, *values.shape[2:]), values.dtype)
        table[rows, ranked.candidate] = values  # Number -1 is the last column.
        return table[:, :N]

    names = "item", "state", "click", "creative", "is_ad"
    return SimpleNamespace(**{name: scattered(getattr(ranked, name)) for name in names})


@jax.jit
def upstream(models, request):
    """Creatives, click probabilities, states and TIGER's logits of the candidates of a batch."""
    history, item = (request.history_poi, request.history_creative), request.item
    of = models.upstream
    creative = peri_cr.choose(of.peri_cr, UPSTREAM.peri_cr, models.items, *history, item)
    ranking = hstu.rank(
        of.hstu, UPSTREAM.hstu, models.items, *history, item, creative, request.is_ad,
        jnp.zeros_like(item),
    )  # fmt: skip
    decoder, catalogue = GeneratorDecoder(of.tiger, UPSTREAM.tiger), models.items.catalogue
    codes = catalogue.poi_codes[jnp.maximum(item, 0)][:, :, None]

    def logits(history_poi, history_creative, codes):
        memory = decoder.encode(history_poi, history_creative, catalogue)
        return decoder.slate_logits(memory, codes)[:, 0]

    return creative, ranking.click, ranking.state, jax.vmap(logits)(*history, codes)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
def downstream(models, ads, is_ad, organic):
    """The auction's list with its log-probabilities, and the slate that it is placed in."""
    listed, log_prob = cga.generate(models.cga, CASCADE.cga, ads)
    queues = Queues(ads.state, ads.quality, ads.bid, is_ad, listed, organic)
    return listed, log_prob, cross_dqn.place(models.cross_dqn, CASCADE.cross_dqn, queues)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, 0, 0))
def judged(models, request, *slate):
    """The reward model's view of slates: POIs, creatives, ad flags."""
    reads = request.history_poi, request.history_creative, organic_pois(vars(request))
    memory = reward_model.encode(models.reward, CASCADE.reward, models.items, *reads)
    return reward_model.predict(models.reward, CASCADE.reward, models.items, memory, *slate)


def likeliest_ads(request, logits):
    """`[N]` bool: a beam search by loops over the codes of the request's ads."""
    poi_codes = np.asarray(tiny_ega().items.catalogue.poi_codes)
    ads = {n: tuple(poi_codes[request.item[n]]) for n in range(N) if request.is_ad[n]}
    beams = {(): 0.0}
    for depth in range(poi_codes.shape[1]):
        longer = {}
        for prefix, log_prob in beams.items():
            below = [n for n, codes in ads.items() if codes[:depth] == prefix]
            follow = sorted({ads[n][depth] for n in below})
            scores = {code: np.exp(logits[below[0], depth, code]) for code in follow}
            for code, score in scores.items():
                longer[*prefix, code] = log_prob + np.log(score / sum(scores.values()))
        beams = dict(sorted(longer.items(), key=lambda beam: -beam[1])[:RECALLED])
    kept = [n for leaf in beams for n in ads if ads[n] == leaf][:RECALLED]
    return np.isin(np.arange(N), kept)


@functools.cache
def recalled():
    """`[B, N]` bool, of which some requests have fewer than ads."""
    logits = np.asarray(upstream(tiny_cascade(), REQUESTS)[3], np.float64)
    return np.stack([likeliest_ads(one(REQUESTS, b), logits[b]) for b in range(ROWS)])


def by_stages(models, is_ad):
    """What `downstream` makes of the batch when these ads `[B, N]` take part."""
    organic = np.full((ROWS, N), -1, np.int32)
    for b in range(ROWS):
        queue = [n for n in range(N) if REQUESTS.item[b, n] >= 0 and not REQUESTS.is_ad[b, n]]
        organic[b, : len(queue)] = queue
    _, click, state, _ = upstream(models, REQUESTS)
    return downstream(models, Ads(state, click, REQUESTS.bid, is_ad), is_ad, organic)


def passed():
    """What passes the funnel, by place."""
    return everything()[0].memory


def real(slate):
    return [n for n in slate.tolist() if n >= 0]


def test_stage_by_stage():
    models = tiny_cascade()
    ranked, shown, menus = found(kappa=KAPPA)
    creative, click, *_ = upstream(models, REQUESTS)
    is_ad = recalled()
    listed, log_prob, slates = jax.device_get(by_stages(models, is_ad))
    np.testing.assert_array_equal(shown.candidate, slates)
    np.testing.assert_array_equal(ranked.is_ad, is_ad)
    there = is_ad | (~REQUESTS.is_ad & (np.cumsum(~REQUESTS.is_ad, axis=1) <= K))
    there &= REQUESTS.item >= 0
    np.testing.assert_array_equal(ranked.creative[there], np.asarray(creative)[there])
    np.testing.assert_allclose(ranked.click[there], np.asarray(click)[there], atol=1e-6)
    for b, k in np.ndindex(ROWS, K):
        n = slates[b, k]
        expected = float(click[b, n]) if n >= 0 else 0.0
        assert shown.quality[b, k] == pytest.approx(expected, abs=1e-6)
        if n >= 0 and is_ad[b, n]:
            place = listed[b].tolist().index(n)
            assert shown.log_z[b, k] == pytest.approx(log_prob[b, place], abs=1e-5)
        else:
            assert shown.log_z[b, k] == 0
    np.testing.assert_array_equal(menus.log_z[:, 0], shown.log_z)
    assert shown.log_z.min() < -0.1


def test_what_is_shown_agrees_with_the_request_and_the_reward_model():
    ranked, shown, menus = found(kappa=KAPPA)
    for b, k in np.ndindex(ROWS, K):
        n = shown.candidate[b, k]
        row = lambda values, empty, b=b, n=n: values[b, n] if n >= 0 else empty
        assert shown.item[b, k] == row(REQUESTS.item, -1)
        assert shown.creative[b, k] == row(ranked.creative, -1)
        assert shown.is_ad[b, k] == row(REQUESTS.is_ad, False)
        assert shown.bid[b, k] == row(REQUESTS.bid, 0)
    slate = shown.item, shown.creative, shown.is_ad
    expected = judged(tiny_cascade(), REQUESTS, *slate)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), shown.prediction, expected
    )
    pctr = np.asarray(expected.click_poi, np.float64)
    for b in range(ROWS):
        value = sum((shown.bid[b, k] + KAPPA) * pctr[b, k] for k in range(K))
        assert menus.value[b] == pytest.approx([value], rel=1e-5)
    np.testing.assert_array_equal(menus.candidate[:, 0], shown.candidate)
    np.testing.assert_allclose(menus.pctr[:, 0], pctr, atol=1e-5)
    assert menus.where.all()


def test_slates_are_full_and_in_order():
    _, shown, _ = found()
    ads = REQUESTS.is_ad & (REQUESTS.item >= 0)
    assert (recalled() < ads).any()
    for b in range(ROWS):
        slate = real(shown.candidate[b])
        assert shown.candidate[b, : len(slate)].tolist() == slate
        assert len(set(slate)) == len(slate)
        organic = [n for n in slate if not ads[b, n]]
        available = [n for n in range(N) if REQUESTS.item[b, n] >= 0 and not ads[b, n]]
        assert organic == available[: len(organic)]
        assert all(recalled()[b, n] for n in slate if ads[b, n])
        assert len(slate) == min(K, len(available) + recalled()[b].sum())
    assert {0, 1, 2} <= set(shown.is_ad.sum(-1).tolist())


def test_reserve_limits_and_gaps_hold():
    _, free, _ = found()
    apart = lambda slate: np.diff(np.flatnonzero(slate)).min(initial=K) > 1
    assert (free.is_ad.sum(-1) > 1).any()
    assert not all(apart(slate) for slate in free.is_ad)
    assert (free.bid[free.is_ad] < 1.0).any()
    _, few, _ = found(max_ads=1)
    assert few.is_ad.sum(-1).max() == 1
    _, gapped, _ = found(min_gap=1)
    assert all(apart(slate) for slate in gapped.is_ad)
    assert gapped.is_ad.sum(-1).max() == 2
    _, dear, _ = found(reserve=1.0)
    assert dear.is_ad.any()
    assert dear.bid[dear.is_ad].min() >= 1.0


def test_bids_move_neither_what_is_prepared_nor_bid_free_slates():
    quiet, loud = found(), found("loud")
    jax.tree.map(np.testing.assert_array_equal, vars(quiet[0]), vars(loud[0]))
    assert (quiet[1].candidate != loud[1].candidate).any()
    quiet, loud = found(bid_free=True)[1], found("loud", bid_free=True)[1]
    for name in ("candidate", "creative", "log_z", "prediction"):
        jax.tree.map(np.testing.assert_array_equal, getattr(quiet, name), getattr(loud, name))
    assert (quiet.bid != loud.bid).any()


def test_stages_see_bids_as_the_levers_say():
    """What auction and allocation are trained on and served with alike."""
    row = np.argmax(recalled().sum(-1))
    ranked, bid = one((passed().ranked, passed().bid), row)
    listed, reserve = np.flatnonzero(ranked.is_ad), np.median(bid[ranked.is_ad])
    stages = lambda levers: (ads_of(ranked, bid, levers), queues_of(ranked, bid, levers, listed))
    for stage in stages(levers(bid_free=True)):
        np.testing.assert_array_equal(stage.bid, np.zeros(bid.size))
    ads, queues = stages(levers(reserve=reserve))
    np.testing.assert_array_equal(ads.where, ranked.is_ad & (bid >= reserve))
    assert 0 < ads.where.sum() < ranked.is_ad.sum()
    for stage in (ads, queues):
        np.testing.assert_array_equal(stage.bid, bid)


def test_what_is_masked_is_removed():
    """One candidate of each request is masked where it stands, or taken out."""
    rng = np.random.default_rng(2)
    masked = jax.tree.map(np.array, REQUESTS)
    removed = jax.tree.map(np.array, REQUESTS)
    for b in range(ROWS):
        n = rng.integers(0, (REQUESTS.item[b] >= 0).sum())
        masked.item[b, n], masked.is_ad[b, n], masked.bid[b, n] = -1, True, 7.0
        for name, blank in (("item", -1), ("is_ad", False), ("bid", 0)):
            values = getattr(removed, name)
            values[b] = np.append(np.delete(values[b], n), blank)
    (hidden, menus), (expected, others) = (
        jax.tree.map(lambda x: x[:, 0], allocated(tiny_cascade(), requests, levers())[1:])
        for requests in (masked, removed)
    )
    for name in ("item", "creative", "is_ad", "bid"):
        np.testing.assert_array_equal(getattr(hidden, name), getattr(expected, name))
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5)
    jax.tree.map(close, hidden.prediction, expected.prediction)
    close(hidden.log_z, expected.log_z)
    close(menus.value, others.value)
    assert (expected.item != found()[1].item).any()


def test_what_is_banned_is_not_shown_and_recall_is_not_repeated():
    ranked, shown = found()[0], everything()[1]
    unseen = REQUESTS.is_ad & ~ranked.is_ad
    assert unseen.any()
    for b, n in np.ndindex(ROWS, N):
        without, is_ad = real(shown.candidate[b, n + 1]), REQUESTS.is_ad[b]
        organic = [m for m in range(N) if REQUESTS.item[b, m] >= 0 and not is_ad[m] and m != n]
        ads = [m for m in range(N) if ranked.is_ad[b, m] and m != n]
        kept = [m for m in without if not is_ad[m]]
        assert kept == organic[: len(kept)]
        assert {m for m in without if is_ad[m]} <= set(ads)
        assert len(without) == min(K, len(organic) + len(ads))
        if unseen[b, n]:
            assert without == real(shown.candidate[b, 0])


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0, 0, None))
def reported(system, request, reports, changed):
    return system.allocate_each(system.prepare(request, changed), reports)


def test_reports_are_as_lists_of_these_bids():
    """Bids of single ads, recalled or not, against a list of its own for each."""
    rng = np.random.default_rng(5)
    ad = np.argmax(rng.random((ROWS, N)) * (REQUESTS.is_ad + 0.01 * (REQUESTS.item >= 0)), axis=1)
    bid = rng.choice([0.0, 0.7, 3.0, 9.0], ROWS).astype(np.float32)
    own = (np.arange(N) == ad[:, None]) & REQUESTS.is_ad
    ad = np.where(own.any(1), ad, -1).astype(np.int32)
    louder = REQUESTS.replace(bid=np.where(own, bid[:, None], REQUESTS.bid))
    for bid_free in (False, True):
        settings = levers(bid_free=bid_free)
        found_each = reported(tiny_cascade(), REQUESTS, Report(ad[:, None], bid[:, None]), settings)
        lists = jax.tree.map(lambda x: x[:, :1], allocated(tiny_cascade(), louder, settings)[1:])
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found_each, lists)


def test_the_rivals_of_its_menu_are_the_recalled_ads():
    ranked, _, menus = found()
    rivals = menus.rivals
    for b in range(ROWS):
        there = rivals.ad[b] >= 0
        assert set(rivals.ad[b, there].tolist()) == set(np.flatnonzero(recalled()[b]).tolist())
        ads = rivals.ad[b, there]
        np.testing.assert_array_equal(rivals.bid[b, there], REQUESTS.bid[b, ads])
        np.testing.assert_array_equal(rivals.quality[b, there], ranked.click[b, ads])


@functools.cache
def mechanism():
    """Without a payment network: no head is trained."""
    pricing = PricingConfig(hidden=(8, 4), probes=(), heads=())
    return Mechanism(tiny_cascade(), {}, pricing, LEVERS, "gsp")


def test_its_mechanism_shows_the_same_and_prices_within_the_bid():
    """It allocates one bid vector at a time."""
    assert mechanism().choices == ("first_price", "gsp", "clarke", "truthful")
    prices = {}
    for rule in mechanism().choices:
        slate = jax.device_get(mechanism().allocate(REQUESTS, rule))
        prices[rule] = slate.price_per_click
        _, shown, _ = found(bid_free=rule == "truthful")
        np.testing.assert_array_equal(slate.items, shown.item)
        np.testing.assert_array_equal(slate.creatives, shown.creative)
        np.testing.assert_allclose(slate.pctr, shown.prediction.click_poi, atol=1e-6)
        assert (prices[rule] >= 0).all()
        assert (prices[rule] <= shown.bid).all()
        assert (prices[rule][~shown.is_ad] == 0).all()
        if rule == "first_price":
            np.testing.assert_array_equal(prices[rule], shown.bid)
    assert prices["gsp"].sum() < prices["first_price"].sum()
    assert prices["gsp"].any()
    assert prices["clarke"].any()
    assert (prices["clarke"] != prices["gsp"]).any()


def test_clarkes_price_is_what_an_ad_costs_the_others():
    """By running auction and placement again without the ad of a slot."""
    models, (ranked, shown, menus) = tiny_cascade(), found()
    price = jax.device_get(mechanism().allocate(REQUESTS, "clarke")).price_per_click
    at = lambda values, slates, empty: np.where(
        slates >= 0, np.take_along_axis(np.asarray(values), slates, axis=1), empty
    )
    for k in range(K):
        gone = np.where(shown.is_ad[:, k], shown.candidate[:, k], -1)
        is_ad = ranked.is_ad & (np.arange(N) != gone[:, None])
        slates = np.asarray(by_stages(models, is_ad)[2])
        slate = at(REQUESTS.item, slates, -1), at(ranked.creative, slates, -1)
        pctr = judged(models, REQUESTS, *slate, at(REQUESTS.is_ad, slates, False)).click_poi
        without = (at(REQUESTS.bid, slates, 0) * pctr).sum(-1)
        own, own_pctr = shown.bid[:, k], shown.prediction.click_poi[:, k]
        owed = without - (menus.value[:, 0] - own * own_pctr)
        for b in np.flatnonzero(shown.is_ad[:, k]):
            expected = np.clip(owed[b] / own_pctr[b], 0, own[b])
            assert price[b, k] == pytest.approx(float(expected), abs=1e-4)


def test_a_rule_of_a_head_that_is_not_trained_is_refused():
    for rule in ("threshold", "rate"):
        with pytest.raises(ValueError, match=f"rule '{rule}' is not one of first_price, gsp, cl"):
            mechanism().allocate(REQUESTS, rule)


@functools.cache
def explained(row):
    return jax.device_get(mechanism().explain(REQUESTS, row))


def full_rows():
    """Two requests whose slates show an ad and an organic item, and one with an empty slot."""
    is_ad, shown = found()[1].is_ad, found()[1].candidate >= 0
    mixed = np.flatnonzero(is_ad.any(-1) & (shown & ~is_ad).any(-1))
    return [*mixed[:2], np.flatnonzero(~shown.all(-1))[0]]


def test_an_explanation_credits_items_by_slates_without_them():
    """Contributions (31) against the value of what is shown when the item may not be."""
    _, shown, menus = everything()
    credited = []
    for row in full_rows():
        of = explained(row)
        np.testing.assert_array_equal(of.items, shown.item[row, 0])
        np.testing.assert_allclose(of.pctr, shown.prediction.click_poi[row, 0], atol=1e-6)
        np.testing.assert_allclose(of.log_z, shown.log_z[row, 0], atol=1e-5)
        for slot, candidate in enumerate(shown.candidate[row, 0]):
            value, without = menus.value[row, [0, candidate + 1], 0]
            expected = value - without if candidate >= 0 else 0.0
            assert of.contribution[slot] == pytest.approx(expected, abs=1e-5)
            credited.append(expected)
    assert max(credited) > 0.01


def test_an_explanation_has_prices_and_no_codes():
    for row in full_rows():
        of = explained(row)
        for name in ("codes", "logit", "token_bid", "weight"):
            assert getattr(of, name).shape == (K, 0)
        assert of.price.keys() == {"first_price", "gsp", "clarke"}
        alone = one(jax.tree.map(np.asarray, REQUESTS), row)
        for rule, price in of.price.items():
            assert np.isfinite(price).all()
            assert ((price >= 0) & (price <= of.bid)).all()
            served = mechanism().allocate(REQUESTS, rule)
            np.testing.assert_allclose(price, served.price_per_click[row], atol=1e-5, err_msg=rule)
        assert ((of.lowest_bid >= 0) & (of.lowest_bid <= of.bid)).all()
        assert (of.lowest_bid[~of.is_ad] == 0).all()
        slots = of.to_dict()
        assert [slot["items"] for slot in slots] == [i for i in of.items.tolist() if i >= 0]
        assert {slot["items"] for slot in slots} <= set(alone.item.tolist())
        bars, _ = of.plot().axes
        heights = [patch.get_height() for patch in bars.patches]
        assert heights == pytest.approx([slot["contribution"] for slot in slots])
