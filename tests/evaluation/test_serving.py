"""What is served, counted with loops, by the model and by a truth of one's own."""

import dataclasses

import numpy as np
import pytest
from tiny_mechanism import requests_with_ads_last, tiny_mechanism
from tiny_models import batch_of

from ega_jax.data.market.clicks import Responses
from ega_jax.evaluation.serving import judges_of, served

B = 6


class HalfOfAll:
    """Every item shown is clicked half of the time."""

    def responses(self, session, items, creatives, is_ad):
        assert len(session) == len(items) == len(creatives) == len(is_ad)
        click = np.where(items >= 0, 0.5, 0.0)
        return Responses(**{field.name: click for field in dataclasses.fields(Responses)})


def test_money_and_clicks_by_a_loop():
    requests, mechanism = requests_with_ads_last(3, B), tiny_mechanism()
    batch = batch_of(requests, session=np.arange(B))
    found = served(mechanism, [batch, batch], judges_of(HalfOfAll()), rule="gsp", beta=3.0)
    slate = mechanism.allocate(requests, "gsp", beta=3.0)
    sums = {judge: np.zeros(5) for judge in ("model", "truth")}
    ads = shown = 0
    for row in range(B):
        for slot, item in enumerate(np.asarray(slate.items[row])):
            if item < 0:
                continue
            shown += 1
            is_ad = bool(slate.is_ad[row, slot])
            ads += is_ad
            candidates = zip(
                requests.item[row], requests.is_ad[row], requests.bid[row], strict=True
            )
            bids = [float(bid) for i, ad, bid in candidates if i == item and ad]
            bid = max(bids) if is_ad else 0.0
            by_model = [float(x[row, slot]) for x in (slate.pctr, slate.pctr_image, slate.pcvr)]
            for judge, (click, image, convert) in (("model", by_model), ("truth", [0.5] * 3)):
                price = float(slate.price_per_click[row, slot])
                sums[judge] += np.array([click * price, click * bid, click, image, click * convert])
    assert 0 < ads < shown
    for judge, (paid, value, clicks, images, converted) in sums.items():
        expected = {
            "rpm": 1000 * paid / shown,
            "value": 1000 * value / shown,
            "surplus": 1000 * (value - paid) / shown,
            "conversions": 1000 * converted / shown,
            "ctr_poi": clicks / shown,
            "ctr_img": images / shown,
            "ad_share": ads / shown,
        }
        assert found[judge].keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[judge][name], value, rtol=1e-5, err_msg=name)


def test_blank_rows_count_for_nothing():
    requests = requests_with_ads_last(3, B)
    batch = batch_of(requests, session=np.arange(B))
    blank = {name: np.array(x) for name, x in batch.items()}
    for name in ("history_poi", "history_creative", "item"):
        blank[name][:] = -1
    blank["is_ad"][:], blank["bid"][:] = False, 0.0
    half = {name: np.concatenate([batch[name], blank[name]]) for name in batch}
    kept, alone = (
        served(tiny_mechanism(), [b], judges_of(None), rule="gsp") for b in (half, batch)
    )
    assert kept["model"] == pytest.approx(alone["model"], rel=1e-5)
    assert kept.keys() == {"model"}
