import re

import pytest

from ega_jax.data.folders import detect_format
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError


@pytest.fixture
def home(make_sequences, make_ad_log, tmp_path):
    make_sequences().write(tmp_path / "data" / "beauty")
    make_ad_log().write(tmp_path / "data" / "log")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_formats_are_told_by_their_files(home):
    assert detect_format(home / "data" / "beauty") == "sequences"
    assert detect_format(str(home / "data" / "log")) == "ad_log"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere: the folder does not exist"),
        ("empty", "empty: not a dataset: expected items.parquet and sequences.parquet, or pois"),
        ("empty", "it holds nothing"),
        ("data", "it holds beauty, log; did you mean {home}/data/beauty or {home}/data/log?"),
        ("data/log/sessions", "did you mean {home}/data/log?"),
        ("data/log/pois.parquet", "a file, not the folder of a dataset: "),
        ("data/log/pois.parquet", "did you mean {home}/data/log?"),
    ],
)
def test_a_path_that_is_no_dataset_is_answered_with_one_nearby(home, path, message):
    with pytest.raises(DataError, match=re.escape(message.replace("{home}", str(home)))):
        detect_format(home / path)


def test_a_relative_path_is_shown_absolute(home, monkeypatch):
    monkeypatch.chdir(home)
    with pytest.raises(UserError, match=re.escape(f"nowhere: the folder does not exist (looked fo"
                                                  f"r {home}/nowhere)")):  # fmt: skip
        detect_format("nowhere")
