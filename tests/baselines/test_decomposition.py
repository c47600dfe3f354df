"""The chain from the best slate to what is paid, by listing every slate under each stage."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_slate import every_dress, every_slate, exhaustive
from tiny_cascade import CASCADE, tiny_gr, with_funnel
from tiny_models import (
    K,
    N,
    P,
    R,
    batch_of,
    levers,
    random_requests,
    serve,
    tiny_ega,
    with_beams,
)

from ega_jax.auction.pricing import PricingConfig
from ega_jax.auction.system import Levers
from ega_jax.baselines.cascade.mca import ads_of, cga
from ega_jax.baselines.decomposition import decompose, losses
from ega_jax.data.market.clicks import Responses
from ega_jax.errors import UserError
from ega_jax.evaluation.judges import TrueClicks
from ega_jax.evaluation.samples import samples_of
from ega_jax.mechanism import Mechanism
from ega_jax.types import Slate

D, ADS, PAID = 24, 4, 0.6
SHOWN = ("item", "creative", "is_ad")
STAGES = ["attainable", "recalled", "ranked", "listed", "placed", "shown", "paid", "menu"]


class OwnTruth:
    """Clicks that depend on the item, its creative, the slot, the ads above, and the session."""

    def responses(self, session, items, creatives, is_ad):
        rng = np.random.default_rng(0)
        poi, image = rng.uniform(0.1, 0.5, P), rng.uniform(0.5, 1.0, R)
        above = np.cumsum(is_ad, axis=1) - is_ad
        click = poi[items] * image[creatives] * 0.8 ** np.arange(items.shape[1]) * 0.7**above
        click = np.where(items >= 0, click * (1 + session[:, None] % 2), 0.0)
        return Responses(**{field.name: click for field in dataclasses.fields(Responses)})


class Showing(Mechanism):
    """Shows the second ad listed between two organic items, at a share of its bid.

    The other slate of its menu has the ad first.
    """

    def allocate_with_menu(self, request, rule=None, **changes):
        slate = self.allocate(request)
        order = np.array([[0, 1, 2], [1, 0, 2], [2, 1, 0]])
        stacked = lambda x: np.asarray(x)[:, order]
        where = np.broadcast_to(np.arange(3) < 2, (len(slate.items), 3))
        shown = stacked(slate.items), stacked(slate.creatives), stacked(slate.is_ad)
        return slate, SimpleNamespace(**dict(zip(SHOWN, shown, strict=True)), where=where)

    def allocate(self, request, rule=None, **changes):
        candidate = np.full((len(request.item), K), ADS) + np.arange(K) // 2
        candidate[:, 1] = traced(request)[2][:, 1]
        at = lambda values: np.take_along_axis(np.asarray(values), candidate, 1)
        item, bid, nothing = at(request.item), at(request.bid), np.zeros(candidate.shape)
        creative = owned()[item, 0]
        is_ad = at(request.is_ad)
        return Slate(item, creative, is_ad, bid, PAID * bid, nothing, nothing, nothing)


def showing(system=None, **changes):
    """A mechanism of the cascade, or by default of a system without stages."""
    system = tiny_ega() if system is None else system
    return Showing(system, {}, PricingConfig(heads=()), levers(**changes), "gsp")


def cascade():
    """Recalls three of four ads, and ranks two of them."""
    return with_funnel(num_ranked=2)


def owned():
    return np.asarray(tiny_ega().items.catalogue.poi_creatives)


@functools.cache
def sample():
    """Requests of four ads and two organic items, more than there is room for."""
    requests, rng = random_requests(0, D), np.random.default_rng(1)
    item = np.stack([rng.permutation(P)[:N] for _ in range(D)]).astype(np.int32)
    is_ad = np.broadcast_to(np.arange(N) < ADS, item.shape)
    bid = np.where(is_ad, rng.uniform(0.5, 2.0, item.shape), 0.0).astype(np.float32)
    batch = batch_of(requests, item=item, is_ad=is_ad, bid=bid, session=np.arange(D))
    (found,) = samples_of([batch], OwnTruth(), owned(), K)
    return found


def traced(request):
    """Which ads the cascade recalls and ranks, and how it lists them, stage by stage."""
    return jax.device_get(_traced(cascade(), request))


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def _traced(system, request):
    passed = system.prepare(request, Levers()).memory
    ranked, number = passed.ranked, jnp.arange(N)
    listed = cga.generate(system.cga, CASCADE.cga, ads_of(ranked, passed.bid, Levers()))[0]
    kept = passed.recalled, jnp.where(ranked.is_ad, ranked.candidate, -1)
    recalled, is_ranked = (jnp.any(number[:, None] == ads, axis=1) for ads in kept)
    return recalled, is_ranked, jnp.where(listed >= 0, ranked.candidate[listed], -1)


def mean_of_best(ads, ordered=False):
    """Mean over requests of the best slate of each one's ads, by listing them all."""
    every = [every_slate(sample().request, row, list(ads[row]), K, ordered) for row in range(D)]
    return np.mean([exhaustive(sample(), row, slates) for row, slates in enumerate(every)])


def own_slates():
    """By a loop: what the shown slates are worth, with the best creatives and as they are."""
    request, slate = sample().request, showing().allocate(sample().request)
    click = OwnTruth().responses(np.arange(D), slate.items, slate.creatives, slate.is_ad).click_poi
    shown = placed = 0.0
    for row in range(D):
        (ad,) = np.flatnonzero(request.item[row] == slate.items[row, 1])
        shown += click[row, 1] * request.bid[row, ad]
        placed += exhaustive(sample(), row, [[ADS, ad, ADS + 1]])
    first = shown / 0.8  # The menu's other slate.
    return {"placed": placed / D, "shown": shown / D, "paid": PAID * shown / D, "menu": first / D}


def decomposed(mechanism, *samples, model=None):
    """The values of one system."""
    return decompose({"own": mechanism}, samples, model)["own"]


def test_the_chain_of_a_cascade_stage_by_stage():
    found = decomposed(showing(cascade()), sample())
    recalled, ranked, listed = traced(sample().request)
    assert np.all(recalled.sum(1) == 3)
    assert np.all((listed >= 0).sum(1) == ranked.sum(1))
    expected = {
        "attainable": mean_of_best([range(ADS)] * D),
        "recalled": mean_of_best([np.flatnonzero(row) for row in recalled]),
        "ranked": mean_of_best([np.flatnonzero(row) for row in ranked]),
        "listed": mean_of_best([row[row >= 0] for row in listed], ordered=True),
        **own_slates(),
    }
    assert list(found) == list(expected) == STAGES
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name
    values = np.array([found[name] for name in STAGES[:-1]])
    assert np.all(values[1:] < 0.995 * values[:-1]), "every stage of this cascade loses something"


def test_ads_below_the_reserve_are_nobodys():
    """On the requests whose shown ad bids enough, repeated to as many rows."""
    reserve = np.median(sample().request.bid[:, :ADS])
    shown = np.asarray(showing().allocate(sample().request).price_per_click[:, 1]) / PAID
    rows = shown >= reserve
    request = jax.tree.map(lambda x: np.concatenate([x[rows]] * D)[:D], sample().request)
    session = np.concatenate([np.arange(D)[rows]] * D)[:D]
    judge = TrueClicks(OwnTruth(), session)
    kept = dataclasses.replace(sample(), request=request, asked=request, judge=judge)
    bids = request.bid[:, :ADS]
    best = [
        exhaustive(
            kept, row, every_slate(request, row, list(np.flatnonzero(bids[row] >= reserve)), K)
        )
        for row in range(D)
    ]
    found = decomposed(showing(reserve=reserve), kept)
    assert found["attainable"] == pytest.approx(np.mean(best), rel=1e-3)
    assert found["attainable"] < 0.99 * decomposed(showing(), kept)["attainable"]


def test_the_chain_of_another_system_has_no_stages_before_its_slates():
    found = decomposed(showing(), sample(), sample())
    assert list(found) == ["attainable", "placed", "shown", "paid", "menu"]
    expected = own_slates() | {"attainable": mean_of_best([range(ADS)] * D)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name


def test_losses_are_shares_of_the_first():
    found = losses({"attainable": 4.0, "placed": 3.0, "paid": 1.0})
    assert found == {
        "attainable": {"currency": 4.0, "share": 1.0, "lost": 0.0},
        "placed": {"currency": 3.0, "share": 0.75, "lost": 0.25},
        "paid": {"currency": 1.0, "share": 0.25, "lost": 0.5},
    }
    assert losses({"attainable": 0.0, "paid": 0.0})["paid"]["share"] == 0


def test_ceilings_are_no_steps_of_the_chain():
    found = losses({"attainable": 4.0, "shown": 2.0, "paid": 1.0, "visible": 3.0, "menu": 2.5})
    assert found["visible"] == {"currency": 3.0, "share": 0.75}
    assert found["menu"] == {"currency": 2.5, "share": 0.625}
    assert found["paid"]["lost"] == 0.25


def test_the_truth_as_the_model_sees_all_that_is_attainable():
    for mechanism in (showing(cascade()), showing(), showing(max_ads=1)):
        found = decomposed(mechanism, sample(), model=lambda sample: sample.judge)
        assert found["visible"] == pytest.approx(found["attainable"], rel=1e-6)


class Misled:
    """Sees the opposite of the truth."""

    at_once = 64

    def __init__(self, judge):
        self.judge = judge

    def clicks(self, row, item, creative, is_ad):
        return np.where(item >= 0, 1.0 - self.judge.clicks(row, item, creative, is_ad), 0.0)


def test_what_a_misled_model_sees_is_valued_by_the_truth():
    found = decomposed(showing(), sample(), model=lambda sample: Misled(sample.judge))
    request, misled = sample().request, dataclasses.replace(sample(), judge=Misled(sample().judge))
    expected = []
    for row in range(D):
        slates = list(every_slate(request, row, list(range(ADS)), K))
        pairs = [(slate, dress) for slate in slates for dress in every_dress(misled, row, slate)]
        rows, (slate, dress) = np.full(len(pairs), row), map(np.array, zip(*pairs, strict=True))
        seen, true = (judged.values(rows, slate, dress) for judged in (misled, sample()))
        expected.append(true[seen.argmax()])
    assert found["visible"] == pytest.approx(np.mean(expected), rel=1e-3)
    assert found["visible"] < 0.9 * found["attainable"]


class Serving(Mechanism):
    """Serves without prices, which take much longer to compile."""

    def allocate_with_menu(self, request, rule=None, **changes):
        _, shown, menu = jax.device_get(serve(self.system, request, self.levers))
        named = {name: getattr(shown, name) for name in ("is_ad", "bid")}
        names = ("price_per_click", "pctr", "pctr_image", "pcvr")
        slate = Slate(shown.item, shown.creative, **named, **dict.fromkeys(names, shown.bid))
        return slate, menu


SYSTEMS = {"ega": lambda: with_beams(tiny_ega(), 4), "gr": tiny_gr, "mca": cascade}


def test_menus_of_systems_by_a_loop():
    """The best by the truth of all slates from which a system chose, and of that shown."""
    mechanisms = {
        name: Serving(
            system(), {}, PricingConfig(heads=()), levers(max_ads=2, bid_free=name == "gr"), "gsp"
        )
        for name, system in SYSTEMS.items()
    }
    every = decompose(mechanisms, [sample()], lambda sample: sample.judge)
    assert list(every) == list(SYSTEMS)
    for name, found in every.items():
        slate, menu = mechanisms[name].allocate_with_menu(sample().request)
        shown = SimpleNamespace(**vars(slate), item=slate.items, creative=slate.creatives)
        best = [max(values_of(menu, row, menu.where[row])) for row in range(D)]
        own = [values_of(shown, row, ...)[0] for row in range(D)]
        assert found["shown"] == pytest.approx(np.mean(own), rel=1e-5), name
        assert found["menu"] == pytest.approx(np.mean(np.maximum(best, own)), rel=1e-5), name
        assert found["shown"] <= found["menu"] <= found["attainable"] * (1 + 1e-6), name
        assert found["visible"] == pytest.approx(found["attainable"], rel=1e-6), name
    assert every["mca"]["menu"] == every["mca"]["shown"], "a cascade's menu is its one slate"
    assert every["ega"]["menu"] > 1.02 * every["ega"]["shown"]


def values_of(slates, row, where):
    """Values of a request's slates by the truth; `where` picks some."""
    of = lambda name: np.atleast_2d(getattr(slates, name)[row][where])
    session, bid = np.full(len(of("item")), row), of("bid")
    click = OwnTruth().responses(session, of("item"), of("creative"), of("is_ad")).click_poi
    return (bid * click).sum(-1)


def test_a_limit_of_ads_lowers_what_is_attainable():
    free, limited = (decomposed(showing(max_ads=most), sample()) for most in (K, 1))
    assert free["shown"] == limited["shown"] <= limited["attainable"] < free["attainable"]


def test_a_least_gap_is_refused():
    with pytest.raises(UserError, match="own: the best slates"):
        decomposed(showing(min_gap=1), sample())
