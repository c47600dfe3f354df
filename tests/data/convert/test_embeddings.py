import sys

import numpy as np
import pytest

from ega_jax.data.convert.embeddings import FromFile, SentenceEncoder, TfIdf
from ega_jax.data.convert.source import ItemText
from ega_jax.data.tables import DataError

ITEMS = [
    ItemText("a", "red nail lacquer", ("Beauty",)),
    ItemText("b", "red nail polish", ("Beauty",)),
    ItemText("c", "sourdough bread", ("Food",)),
    ItemText("d"),
]


def test_tfidf_puts_like_beside_like():
    vectors = TfIdf(width=3)(ITEMS)
    assert vectors.shape == (4, 3)
    assert vectors.dtype == np.float32
    similar = vectors @ vectors.T
    assert similar[0, 1] > 0.5 > similar[0, 2]
    np.testing.assert_allclose(np.diag(similar), [1, 1, 1, 0], atol=1e-5)


def test_tfidf_is_no_wider_than_its_words():
    assert TfIdf(width=64)(ITEMS[:2]).shape == (2, 2)


def test_tfidf_without_words_is_refused():
    with pytest.raises(DataError, match="no words to make embeddings of"):
        TfIdf(width=3)([ItemText("a"), ItemText("b")])


def test_rows_of_a_file_are_found_by_name(tmp_path):
    np.save(tmp_path / "vectors.npy", np.arange(10).reshape(5, 2))
    (tmp_path / "names.txt").write_text("d\nc\nx\na\nb\n")
    vectors = FromFile(tmp_path / "vectors.npy", tmp_path / "names.txt")(ITEMS)
    np.testing.assert_array_equal(vectors, [[6, 7], [8, 9], [2, 3], [0, 1]])
    assert vectors.dtype == np.float32


def test_files_that_do_not_fit(tmp_path):
    array, names = tmp_path / "vectors.npy", tmp_path / "names.txt"
    with pytest.raises(DataError, match=r"vectors.npy: the file does not exist"):
        FromFile(array, names)(ITEMS)
    np.save(array, np.zeros((3, 2)))
    names.write_text("a\nb\n")
    with pytest.raises(DataError, match=r"vectors.npy: expected an array \[2, E\].*\[3, 2\]"):
        FromFile(array, names)(ITEMS)
    names.write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"names.txt: item 'd' of the reviews has no row"):
        FromFile(array, names)(ITEMS)


@pytest.mark.parametrize(
    ("module", "embed", "extra"),
    [
        ("sklearn.decomposition", TfIdf(3), "convert"),
        ("sentence_transformers", SentenceEncoder("any"), "sentence"),
    ],
)
def test_missing_extras_are_named(monkeypatch, module, embed, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'ega-jax\[{extra}\]'"):
        embed(ITEMS)
