"""Files in the formats of Open Bandit and AuctionNet, and the columns that they hold."""

import csv

import numpy as np

NUM_ITEMS, NUM_ADVERTISERS, NUM_REQUESTS = 6, 5, 12
AUCTION_COLUMNS = [
    *("deliveryPeriodIndex", "advertiserNumber", "advertiserCategoryIndex", "budget"),
    *("CPAConstraint", "timeStepIndex", "remainingBudget", "pvIndex", "pValue", "pValueSigma"),
    *("bid", "xi", "adSlot", "cost", "isExposed", "conversionAction", "leastWinningCost", "isEnd"),
]


def write_csv(path, rows):
    """Writes rows, which are dicts of the same columns."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def bandit_items():
    """Rows of `item_context.csv`: a number and two hashed classes of each item."""
    rng = np.random.default_rng(0)
    return [
        {
            "": item,
            "item_id": item,
            "item_feature_0": rng.normal(),
            "item_feature_1": f"a{item % 3}",
            "item_feature_2": f"b{item % 2}",
        }
        for item in range(NUM_ITEMS)
    ]


def bandit_rows(num_rows=60):
    """Rows of a log, in time order: one impression each, with every third clicked."""
    rng = np.random.default_rng(1)
    affinities = [f"user-item_affinity_{item}" for item in range(NUM_ITEMS)]
    return [
        {
            "": row,
            "timestamp": f"2019-11-24 00:{row // 60:02}:{row % 60:02}.{row:06}+00:00",
            "item_id": int(rng.integers(NUM_ITEMS)),
            "position": int(rng.integers(1, 4)),
            "click": int(row % 3 == 0),
            "propensity_score": float(rng.uniform(0.1, 1.0)),
            "user_feature_0": f"u{rng.integers(3)}",
            "user_feature_1": f"v{rng.integers(2)}",
            **{name: float(rng.integers(3)) for name in affinities},
        }
        for row in range(num_rows)
    ]


def write_bandit(folder):
    """The paths of a log and of its items."""
    log = write_csv(folder / "all.csv", bandit_rows())
    return log, write_csv(folder / "item_context.csv", bandit_items())


def auction_rows(period, num_requests=NUM_REQUESTS):
    """Rows of one period: the three highest bids win, and each second winner converts."""
    rng = np.random.default_rng(period)
    rows = []
    for request in range(num_requests):
        p = rng.uniform(0.01, 0.1, NUM_ADVERTISERS)
        bids = np.where(rng.random(NUM_ADVERTISERS) < 0.2, 0.0, 40 * p)
        ranked = [int(ad) for ad in np.argsort(-bids) if bids[ad] > 0][:3]
        for ad in range(NUM_ADVERTISERS):
            slot = ranked.index(ad) + 1 if ad in ranked else 0
            values = [period, 10 + ad, ad % 3, 1000.0 + ad, 40 + 3 * ad, request // 5, 900.0]
            values += [request, p[ad], p[ad] / 10, bids[ad], min(slot, 1), slot, 0.1, slot == 1]
            values += [slot > 0 and (request + ad) % 2, 0.05, 0]
            numbers = map(float, values)
            rows.append(dict(zip(AUCTION_COLUMNS, numbers, strict=True)))
    return rows


def write_auction(folder, periods=(7, 8), **options):
    """The paths of files of periods, whose rows are shuffled."""
    paths = []
    for period in periods:
        rows = auction_rows(period, **options)
        np.random.default_rng(0).shuffle(rows)
        paths.append(write_csv(folder / f"period-{period}.csv", rows))
    return paths
