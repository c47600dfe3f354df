"""Statistics of a market's log, to be compared with those of real logs."""

import csv
import pathlib
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ega_jax.data.market.clicks import CLICK, Truth, affinity
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


def matrix(sessions: pa.Table, column: str) -> np.ndarray:
    """Returns a column of lists of equal length as `[B, N]`."""
    lists = sessions[column].combine_chunks()
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(sessions), -1)


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
    names = ("shown_poi", "shown_creative", "shown_is_ad")
    items, creatives, is_ad = (matrix(sessions, name) for name in names)
    row = sessions["session_id"].to_numpy().astype(np.int32)
    true = jax.tree.map(np.asarray, truth.responses(row, items, creatives, is_ad))
    report: dict[str, Any] = {"sessions": len(sessions), "ad_share": float(is_ad.mean())}
    report["ads_per_slate"] = float(is_ad.sum(axis=1).mean())
    for name in ("click_poi", "click_image"):
        click, p = matrix(sessions, name), getattr(true, name)
        report |= {f"{name}.{key}": value for key, value in _response(click, p).items()}
    clicked, convert = matrix(sessions, "click_poi"), matrix(sessions, "convert")
    report["convert.rate"] = float(convert[clicked].mean())
    report["convert.auc_bound"] = auc(true.convert[clicked], convert[clicked])
    first_creative = np.searchsorted(
        pq.read_table(pathlib.Path(folder) / "creatives.parquet")["poi_id"].to_numpy(),
        np.arange(len(truth.latents.poi_latent)),
    )
    return report | bids(sessions, truth) | slate_effects(truth, row, items[:, 0], first_creative)


def _response(click: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Returns rates, and the AUC of the true probabilities: the upper bound of any model."""
    by_slot = np.broadcast_to(p.mean(axis=0), p.shape)
    return {
        "rate": float(click.mean()),
        "rate_by_slot": click.mean(axis=0).tolist(),
        "true_rate_by_slot": p.mean(axis=0).tolist(),
        "auc_bound": auc(p.ravel(), click.ravel()),
        "auc_slot_only": auc(by_slot.ravel(), click.ravel()),
        "variance_explained": float(p.var() / (p.mean() * (1 - p.mean()))),
    }


def bids(sessions: pa.Table, truth: Truth) -> dict[str, Any]:
    """Returns the spread of log bids, and their correlation with true relevance."""
    log_bid, ads = np.log(matrix(sessions, "ad_bid")), matrix(sessions, "ad_poi")
    row = sessions["session_id"].to_numpy()
    user, intent = truth.session_user[row], truth.session_intent[row]
    relevance = np.asarray(affinity(truth.latents, user, intent, ads).utility(CLICK))
    return {
        "bid.median": float(np.exp(np.median(log_bid))),
        "bid.log_sd": float(log_bid.std()),
        "bid.log_sd_within_request": float(log_bid.std(axis=1).mean()),
        "bid.relevance_correlation": float(np.corrcoef(log_bid.ravel(), relevance.ravel())[0, 1]),
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
