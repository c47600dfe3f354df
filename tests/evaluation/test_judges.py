"""A reward model as the judge of slates, against its own predictions request by request."""

import jax
import numpy as np
import pytest
from tiny_models import REWARD, K, N, P, R, batch_of, one, random_requests, tiny_ega

from ega_jax.evaluation import judges
from ega_jax.evaluation.judges import PredictedClicks
from ega_jax.evaluation.samples import Sample
from ega_jax.phases.reward import batch_predictor
from ega_jax.types import BookRequest

D, X = 6, 30


@pytest.fixture(scope="module")
def requests():
    return random_requests(0, D)


@pytest.fixture(scope="module")
def judge(requests):
    return PredictedClicks.of(tiny_ega().reward, REWARD, tiny_ega().items, requests)


@pytest.fixture(scope="module")
def slates():
    """Random slates of random requests, some with empty slots."""
    rng = np.random.default_rng(1)
    item = np.where(rng.random((X, K)) < 0.8, rng.integers(0, P, (X, K)), -1)
    creative = np.where(item >= 0, rng.integers(0, R, (X, K)), -1)
    return rng.integers(0, D, X), item, creative, rng.random((X, K)) < 0.5


def test_clicks_are_those_that_the_model_predicts(requests, judge, slates):
    predict = batch_predictor(REWARD, tiny_ega().items)
    names = ("shown_poi", "shown_creative", "shown_is_ad")
    found = np.asarray(judge.clicks(*slates))
    for n, row in enumerate(slates[0]):
        shown = dict(zip(names, (x[n] for x in slates[1:]), strict=True))
        batch = jax.tree.map(lambda x: np.asarray(x)[None], batch_of(one(requests, row), **shown))
        expected = predict(tiny_ega().reward, batch).click_poi[0]
        np.testing.assert_allclose(found[n], expected, rtol=1e-5)
    assert np.all(found[slates[1] < 0] == 0)


def test_a_request_to_a_book_is_encoded_without_its_ads(requests, judge, slates):
    organic = np.where(requests.is_ad, -1, requests.item)
    history = requests.history_poi, requests.history_creative
    asked = BookRequest(*history, organic=organic, book=np.zeros(D, np.int32))
    found = PredictedClicks.of(tiny_ega().reward, REWARD, tiny_ega().items, asked).clicks(*slates)
    np.testing.assert_allclose(found, judge.clicks(*slates), rtol=1e-6)


def test_any_number_of_slates_and_requests_is_compiled_once(requests, judge, monkeypatch):
    monkeypatch.setattr(PredictedClicks, "at_once", 8)
    owned = np.asarray(tiny_ega().items.catalogue.poi_creatives)
    judges._click_poi.clear_cache()
    for count in (D, 2):
        few = jax.tree.map(lambda x, count=count: x[:count], requests)
        of_few = PredictedClicks.of(tiny_ega().reward, REWARD, tiny_ega().items, few)
        sample = Sample(of_few, few, few, owned, K)
        for size in (3, 8, 21):
            row = np.arange(size) % count
            slate = np.argsort(np.random.default_rng(size).random((size, N)), axis=1)[:, :K]
            slate = np.where(few.item[row[:, None], slate] >= 0, slate, -1)
            creative = np.where(slate >= 0, owned[few.item[row[:, None], slate], 0], -1)
            assert np.all((sample.clicks(row, slate, creative) > 0) == (slate >= 0))
    assert judges._click_poi._cache_size() == 1
