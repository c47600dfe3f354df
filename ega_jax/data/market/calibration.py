"""Statistics of a market's log, to be compared with those of real logs."""

import csv
import pathlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.books import Books
from ega_jax.data.market.clicks import Truth
from ega_jax.data.ragged import Ragged
from ega_jax.data.session_rules import open_sessions

PROBES = 2000  # Number of sessions in which slate effects are measured.
MOST_ABOVE = 3  # Most items placed above an item to measure their effect on its click rate.


def read_sessions(folder: str | pathlib.Path, limit: int) -> pa.Table:
    """Reads at most the first `limit` sessions of a log."""
    tables, rows = [], 0
    for file in open_sessions(pathlib.Path(folder)).files:
        tables.append(pq.read_table(file.path))
        rows += len(tables[-1])
        if rows >= limit:
            break
    return pa.concat_tables(tables).slice(0, limit).combine_chunks()


def matrix(sessions: pa.Table, column: str, width: int, fill: Any = 0) -> np.ndarray:
    """Returns a column of lists as `[B, width]`, with `fill` after the end of each list."""
    dtype = sessions.schema.field(column).type.value_type.to_pandas_dtype()
    lists = Ragged.from_arrow(sessions[column], dtype)
    return lists.first(np.arange(lists.num_rows), width, fill)


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Returns the probability that a random positive outscores a random negative; ties are half."""
    values, place = np.unique(score, return_inverse=True)
    negatives = np.bincount(place[~label], minlength=len(values))
    below = np.cumsum(negatives) - negatives / 2
    return float(below[place[label]].mean() / max((~label).sum(), 1))


def calibrate(folder: str | pathlib.Path, limit: int = 20_000) -> dict[str, Any]:
    """Measures a log and its true probabilities.

    Args:
      folder: the folder of an ad log written by `write_market`.
      limit: the number of sessions to read, from the first.

    Returns:
      Statistics by name; lists are by slot, by number of items above, or by quantile.
    """
    sessions, truth = read_sessions(folder, limit), Truth.load(folder)
    width = int(Ragged.from_arrow(sessions["shown_poi"], np.int32).lengths.max())
    items, creatives = (
        matrix(sessions, f"shown_{name}", width, -1) for name in ("poi", "creative")
    )
    is_ad, where = matrix(sessions, "shown_is_ad", width), items >= 0
    row = sessions["session_id"].to_numpy().astype(np.int32)
    true = jax.tree.map(np.asarray, truth.responses(row, items, creatives, is_ad))
    report: dict[str, Any] = {"sessions": len(sessions), "ad_share": float(is_ad[where].mean())}
    report["ads_per_slate"] = float(is_ad.sum(axis=1).mean())
    report["items_per_slate"] = float(where.sum(axis=1).mean())
    for name in ("click_poi", "click_image"):
        click, p = matrix(sessions, name, width), getattr(true, name)
        report |= {f"{name}.{key}": value for key, value in _response(click, p, where).items()}
    clicked, convert = (matrix(sessions, name, width) for name in ("click_poi", "convert"))
    report["convert.rate"] = float(convert[clicked].mean())
    report["convert.auc_bound"] = auc(true.convert[clicked], convert[clicked])
    first_creative = np.searchsorted(
        pq.read_table(pathlib.Path(folder) / "creatives.parquet")["poi_id"].to_numpy(),
        np.arange(len(truth.latents.poi_latent)),
    )
    return report | bids(folder) | slate_effects(truth, row, items[:, 0], first_creative)


def _response(click: np.ndarray, p: np.ndarray, where: np.ndarray) -> dict[str, Any]:
    """Returns rates of shown items, and the AUC of the true probabilities: no model has more."""
    click_by_slot, true_by_slot = (np.mean(x, axis=0, where=where) for x in (click, p))
    by_slot = np.broadcast_to(true_by_slot, p.shape)[where]
    click, p = click[where], p[where]
    return {
        "rate": float(click.mean()),
        "rate_by_slot": click_by_slot.tolist(),
        "true_rate_by_slot": true_by_slot.tolist(),
        "auc_bound": auc(p, click),
        "auc_slot_only": auc(by_slot, click),
        "variance_explained": float(p.var() / (p.mean() * (1 - p.mean()))),
    }


def bids(folder: str | pathlib.Path) -> dict[str, Any]:
    """Returns the sizes of the ad books, and the spread of log bids over all of them and in one."""
    books = Books.load(pathlib.Path(folder))
    log_bid, num_ads = np.log(books.bid), np.diff(books.book_start)
    within = [part.std() for part in np.split(log_bid, books.book_start[1:-1]) if len(part)]
    return {
        "book.count": len(books.book_id),
        "book.ads": float(num_ads.mean()),
        "bid.median": float(np.exp(np.median(log_bid))),
        "bid.log_sd": float(log_bid.std()),
        "bid.log_sd_within_book": float(np.mean(within)),
        "bid.log_quantiles": np.quantile(log_bid, np.linspace(0.01, 0.99, 99)).tolist(),
    }


def slate_effects(
    truth: Truth, row: np.ndarray, target: np.ndarray, first_creative: np.ndarray
) -> dict[str, Any]:
    """Measures the true click rate of items in the same slot, alone and below other items.

    Args:
      truth: the log's true response model.
      row: `[B]` sessions; at most `PROBES` are used.
      target: `[B]` the POI that is measured, in slot `MOST_ABOVE`.
      first_creative: `[P]` a creative of each POI.

    Returns:
      Mean click rates below 0 to `MOST_ABOVE` similar POIs, random POIs, and random ads.
    """
    slot = MOST_ABOVE
    rng = np.random.default_rng(0)
    rows, target = row[:PROBES], target[:PROBES]
    random = rng.integers(len(truth.latents.poi_latent), size=(len(rows), slot))
    similar = _similar(np.asarray(truth.latents.poi_latent), target, slot)
    report: dict[str, Any] = {}
    for name, above, ads in (
        ("similar", similar, False),
        ("random", random, False),
        ("random_ads", random, True),
    ):
        rates = []
        for count in range(slot + 1):
            slate = np.full((len(rows), slot + 1), -1, np.int32)
            slate[:, slot - count : slot], slate[:, slot] = above[:, :count], target
            is_ad = np.zeros(slate.shape, bool)
            is_ad[:, :slot] = ads
            creatives = np.where(slate >= 0, first_creative[slate], -1).astype(np.int32)
            shown = truth.responses(rows, slate, creatives, is_ad).click_poi
            rates.append(float(shown[:, slot].mean()))
        report[f"slate.rate_below_{name}"] = rates
    return report


def _similar(latent: np.ndarray, target: np.ndarray, count: int) -> np.ndarray:
    """Returns the nearest POIs `[B, count]` of each target `[B]`, without the target."""
    closeness = latent[target] @ latent.T
    closeness[np.arange(len(target)), target] = -np.inf
    return np.argsort(-closeness, axis=1)[:, :count]


def real_prices(path: str | pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads a histogram of prices, columns `campaign,price,impressions`.

    Returns:
      For each campaign, the positive prices and the number of impressions at each.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if float(row["price"]) > 0:
                pair = (float(row["price"]), float(row["impressions"]))
                rows.setdefault(row["campaign"], []).append(pair)
    return {name: tuple(np.array(pairs).T) for name, pairs in rows.items()}


def log_sd(price: np.ndarray, count: np.ndarray) -> float:
    """Returns the standard deviation of log prices with weights `count`."""
    log_price = np.log(price)
    mean = np.average(log_price, weights=count)
    return float(np.sqrt(np.average((log_price - mean) ** 2, weights=count)))
