"""The ad log of AuctionNet against loops over the rows of its files."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from public_logs import NUM_ADVERTISERS, NUM_REQUESTS, auction_rows, write_auction, write_csv

from ega_jax.data.convert.ad_log import convert_log
from ega_jax.data.convert.auction_net import auction_net
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError


def check_session(session, rows):
    """Compares a session with the rows of its request, which are in the order of advertisers."""
    offers = [(place, row) for place, row in enumerate(rows) if row["bid"] > 0]
    assert session["ad_poi"] == [place for place, _ in sorted(offers, key=lambda x: x[0])]
    bids = [row["bid"] / row["pValue"] for _, row in offers]
    np.testing.assert_allclose(session["ad_bid"], bids, rtol=1e-6)
    winners = sorted((row["adSlot"], place) for place, row in offers if row["adSlot"])
    assert session["shown_poi"] == [place for _, place in winners]
    converted = [rows[place]["conversionAction"] == 1 for _, place in winners]
    assert session["click_poi"] == session["convert"] == converted
    assert session["shown_is_ad"] == [True] * len(winners)
    angle = 2 * np.pi * rows[0]["timeStepIndex"] / 48
    context = [*np.log([row["pValue"] for row in rows]), np.sin(angle), np.cos(angle)]
    np.testing.assert_allclose(session["context"], context, rtol=1e-5, atol=1e-6)


def test_a_session_is_a_request_with_all_its_bids(tmp_path):
    report = convert_log(auction_net, write_auction(tmp_path), None, tmp_path / "out")
    assert report.summary.num_rows == 2 * NUM_REQUESTS
    assert (report.summary.num_items, report.summary.num_slots) == (NUM_ADVERTISERS, 3)
    sessions = pq.read_table(tmp_path / "out" / "sessions").to_pylist()
    for number, session in enumerate(sessions):
        period, request = 7 + number // NUM_REQUESTS, number % NUM_REQUESTS
        start = request * NUM_ADVERTISERS
        rows = auction_rows(period)[start : start + NUM_ADVERTISERS]
        assert session["session_id"] == number
        assert session["timestamp"] == period * 86_400 + (request // 5) * 1800
        check_session(session, rows)


def test_advertisers_are_pois(tmp_path):
    convert_log(auction_net, write_auction(tmp_path), None, tmp_path / "out")
    pois = pq.read_table(tmp_path / "out" / "pois.parquet").to_pylist()
    assert [poi["source_id"] for poi in pois] == [10, 11, 12, 13, 14]
    assert [poi["category"] for poi in pois] == [f"category {ad % 3}" for ad in range(5)]
    budget, cpa = np.log1p(1000.0 + np.arange(5)), np.log1p(40.0 + 3 * np.arange(5))
    for ad, poi in enumerate(pois):
        scaled = [(x[ad] - x.mean()) / x.std() for x in (budget, cpa)]
        expected = [*(float(ad % 3 == category) for category in range(3)), *scaled]
        np.testing.assert_allclose(poi["embedding"], expected, rtol=1e-4)


def test_the_report_says_how_it_was_read(tmp_path):
    told = str(convert_log(auction_net, write_auction(tmp_path), None, tmp_path / "out"))
    assert "a click stands for a conversion" in told
    assert "context: log pValue of 5 advertisers, time of day" in told
    assert "warning: every history is empty" in told
    assert "slates have one slot" not in told


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("adSlot", 4, "column 'adSlot', row 3: a slot must be in 0..3, found 4.0"),
        ("pValue", 1.5, "column 'pValue', row 3: a pValue must be from 0 to 1, found 1.5"),
        ("bid", -1, "column 'bid', row 3: a bid must be from 0 to 1e20, found -1.0"),
        ("bid", "nan", "column 'bid', row 3: the value is missing"),
        ("conversionAction", 2, "row 3: a conversion must be 0, or 1 for an ad with a slot"),
        ("advertiserNumber", 10, "row 3: an advertiser may bid once for an opportunity"),
        ("timeStepIndex", 99, "column 'timeStepIndex', row 3: a time step must be from 0 to 48"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, column, value, message):
    rows = auction_rows(7)
    rows[3][column] = value
    path = write_csv(tmp_path / "period-7.csv", rows)
    with pytest.raises(DataError) as error:
        convert_log(auction_net, [path], None, tmp_path / "out")
    assert f"{path}, " in str(error.value)
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_files_must_fit_each_other(tmp_path):
    seven, eight = write_auction(tmp_path)
    with pytest.raises(
        DataError, match=r"period-7.csv, .* rise from file to file; found 7 after 8"
    ):
        convert_log(auction_net, [eight, seven], None, tmp_path / "out")
    rows = auction_rows(9)
    rows[2]["advertiserNumber"] = 99
    other = write_csv(tmp_path / "period-9.csv", rows)
    with pytest.raises(DataError, match=r"period-9.csv.*row 2: .*period-7.csv has no such adv"):
        convert_log(auction_net, [seven, other], None, tmp_path / "out")
    with pytest.raises(UserError, match="auction_net has no file of items"):
        convert_log(auction_net, [seven], eight, tmp_path / "out")
    assert not (tmp_path / "out").exists()
