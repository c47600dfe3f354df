"""POIs that a split of a log has, against a loop over its sessions."""

import pytest

from ega_jax.data.pipeline import open_dataset
from ega_jax.data.seen_items import seen_pois

SPLITS = {"pretrain": (0, 6), "align": (6, 12), "tune": (12, 16), "test": (16, 40)}


def expected(log, first, last, books):
    seen = set()
    for row in range(first, last):
        session = {name: values[row] for name, values in log.sessions.items()}
        for name in ("history_poi", "organic_poi", "shown_poi"):
            seen |= set(session[name])
        if books is None:
            seen |= set(session["ad_poi"])
        else:
            seen |= set(books["ad_poi"][books["book_id"].index(session["book_id"])])
    return [poi in seen for poi in range(12)]


@pytest.mark.parametrize("kind", ["own ads", "books"])
def test_pois_in_any_part_of_the_sessions_of_a_split(ad_log, book_log, tmp_path, kind):
    log, books = (ad_log, None) if kind == "own ads" else (book_log, book_log.books)
    for row in range(6):  # POIs 10 and 11 come later, if not in a book.
        for name in ("history_poi", "organic_poi", "ad_poi"):
            if name in log.sessions:
                log.sessions[name][row] = [p % 9 for p in log.sessions[name][row]]
                log.sessions[name][row] = list(dict.fromkeys(log.sessions[name][row]))
        history = log.sessions["history_poi"][row]
        log.sessions["history_creative"][row] = [2 * poi for poi in history]
        if "ad_bid" in log.sessions:
            log.sessions["ad_bid"][row] = [1.0] * len(log.sessions["ad_poi"][row])
        organic = log.sessions["organic_poi"][row]
        log.sessions["shown_poi"][row] = organic[:1]
        log.sessions["shown_creative"][row] = [2 * poi for poi in organic[:1]]
        log.sessions["shown_is_ad"][row] = [False]
        for name in ("click_poi", "click_image", "convert"):
            log.sessions[name][row] = [name != "click_image"]
    dataset = open_dataset(log.write(tmp_path / "log"), fractions=(6 / 40, 6 / 40, 4 / 40))
    for split, rows in SPLITS.items():
        assert seen_pois(dataset, split).tolist() == expected(log, *rows, books), split
    if books is None:
        assert not seen_pois(dataset).all()
