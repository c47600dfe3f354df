"""Bid landscapes against single requests served with changed bids; books and lists alike."""

import jax
import numpy as np
from book_requests import in_books
from tiny_mechanism import requests_with_ads_last, tiny_mechanism
from tiny_models import batch_of

from ega_jax.evaluation.landscape import Seller, landscape
from ega_jax.evaluation.serving import by_model

B, FACTORS = 6, (0.5, 1.0, 3.0)


def requests_selling():
    """Requests that have one POI for sale, and that POI."""
    requests = requests_with_ads_last(3, B)
    ads = np.where(requests.is_ad, requests.item, -1)
    poi = int(np.bincount(ads[ads >= 0]).argmax())
    rows = np.flatnonzero((ads == poi).any(axis=1))
    some = jax.tree.map(lambda x: np.asarray(x)[rows], requests)
    return some, batch_of(some, session=rows), poi


def test_a_landscape_by_a_loop():
    requests, batch, poi = requests_selling()
    mechanism, count = tiny_mechanism(), len(batch["session"])
    assert count > 1
    found = landscape(Seller(mechanism, None, None, 4), poi, batch, by_model, FACTORS)
    own = np.asarray(requests.is_ad) & (np.asarray(requests.item) == poi)
    for number, factor in enumerate(FACTORS):
        bid = np.where(own, np.float32(factor) * requests.bid, requests.bid)
        slate = mechanism.allocate(requests.replace(bid=bid))
        shown = np.asarray(slate.is_ad) & (np.asarray(slate.items) == poi)
        clicks = np.where(shown, slate.pctr, 0.0).sum()
        spend = np.where(shown, slate.pctr * slate.price_per_click, 0.0).sum()
        value = np.where(shown, slate.pctr * slate.bid, 0.0).sum() / factor
        np.testing.assert_allclose(found.impressions[number], shown.sum() / count)
        np.testing.assert_allclose(found.clicks[number], clicks / count, rtol=1e-5)
        np.testing.assert_allclose(found.price[number] * clicks, spend, rtol=1e-5)
        np.testing.assert_allclose(
            found.surplus[number], (value - spend) / count, rtol=1e-4, atol=1e-6
        )
    np.testing.assert_allclose(found.bid, np.array(FACTORS) * requests.bid[own].mean(), rtol=1e-6)
    assert found.requests == count


def test_books_have_the_landscapes_of_lists():
    requests, batch, poi = requests_selling()
    books, ledger, fields = in_books(requests, tiny_mechanism().system)
    sold = Seller(tiny_mechanism().with_book(ledger.book), books, ledger, len(batch["session"]))
    fields["session"] = batch["session"]
    by_book = landscape(sold, poi, fields, by_model, FACTORS)
    by_list = landscape(Seller(tiny_mechanism(), None, None, 4), poi, batch, by_model, FACTORS)
    for name, values in vars(by_list).items():
        found = getattr(by_book, name)
        np.testing.assert_allclose(found, values, rtol=1e-4, atol=1e-6, err_msg=name)
    assert by_book.clicks[-1] > 0
    np.testing.assert_array_equal(books.bid, np.asarray(requests.bid)[np.asarray(requests.is_ad)])
