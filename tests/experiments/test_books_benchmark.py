"""The book parts of the benchmark on a small book."""

import json

from experiments.benchmarks.books import measure_books


def test_books_are_measured_in_a_process_of_their_own(capfd):
    measure_books([2_000], rounds=1)
    build, *updates = map(json.loads, capfd.readouterr().out.splitlines())
    assert build["part"] == "book_build"
    assert build["ads"] == 2_000
    assert 0 < build["resident_mb"] < build["peak_mb"]
    assert [(line["part"], line["changed"]) for line in updates] == [
        ("book_update", 1_000),
        ("book_update", 2_000),
    ]
    assert all(line["ms"] > 0 for line in updates)
