import sys
import zipfile

import numpy as np
import pytest

from ega_jax.data.convert.embeddings import FromFile, SentenceEncoder, TfIdf
from ega_jax.data.convert.source import ItemText
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError

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
    with pytest.raises(DataError, match="have one word"):
        TfIdf(width=3)([ItemText("a", "heat"), ItemText("b", "heat")])


def test_rows_of_a_file_are_found_by_name(tmp_path):
    np.save(tmp_path / "vectors.npy", np.arange(10).reshape(5, 2))
    (tmp_path / "names.txt").write_text("d\nc\nx\na\nb\n")
    vectors = FromFile(tmp_path / "vectors.npy", tmp_path / "names.txt")(ITEMS)
    np.testing.assert_array_equal(vectors, [[6, 7], [8, 9], [2, 3], [0, 1]])
    assert vectors.dtype == np.float32


def test_ids_may_have_a_mark_windows_line_ends_and_blanks_inside(tmp_path):
    np.save(tmp_path / "vectors.npy", np.asfortranarray(np.arange(4).reshape(2, 2), np.float16))
    (tmp_path / "names.txt").write_bytes("\ufeffa b\r\né\u2028\r\n\r\n".encode())
    embed = FromFile(tmp_path / "vectors.npy", tmp_path / "names.txt")
    np.testing.assert_array_equal(embed([ItemText("é"), ItemText("a b")]), [[2, 3], [0, 1]])


@pytest.mark.parametrize(
    ("rows", "names", "message"),
    [
        (3, "a\nb\n", r"vectors.npy: the array has 3 rows, but .*names.txt has 2 ids"),
        (2, "a\nb\nc", r"vectors.npy: the array has 2 rows, but .*names.txt has 3 ids"),
        (3, "a\nb\nc\n", r"names.txt: item 'd' of the reviews has no row"),
        (5, "a\nb\nc\nd\nb\n", r"names.txt: line 5: id 'b' is also on line 2"),
        (4, "a\n\nb\nc\nd\n", r"names.txt: line 2 is empty"),
        (4, "", r"names.txt: the file is empty"),
        (4, None, r"names.txt: the file does not exist"),
    ],
)
def test_ids_that_do_not_fit(tmp_path, rows, names, message):
    np.save(tmp_path / "vectors.npy", np.zeros((rows, 2)))
    if names is not None:
        (tmp_path / "names.txt").write_text(names)
    with pytest.raises(DataError, match=message):
        FromFile(tmp_path / "vectors.npy", tmp_path / "names.txt")(ITEMS)


def save_torch(path):
    """As `torch.save` does: a zip archive."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")


def save_cut(path):
    np.save(path, np.zeros((4, 100)))
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("x.npz", lambda path: np.savez(path, a=np.zeros((4, 2))), "a zip archive, as .npz and"),
        ("x.pt", save_torch, "a zip archive, as .npz and .pt files are; expected a .npy file"),
        ("x.npy", lambda path: path.write_text("0.1 0.2"), "no .npy file; expected a .npy file"),
        ("x.npy", lambda path: path.write_bytes(b""), "no .npy file; expected"),
        ("x.npy", lambda path: None, "the file does not exist"),
        ("x.npy", lambda path: path.mkdir(), "this is a folder; expected a .npy file"),
        ("x.npy", save_cut, "cannot be read"),
        ("x.npy", lambda path: np.save(path, np.full((4, 2), None)), "cannot be read .*object"),
        ("x.npy", lambda path: np.save(path, np.full((4, 2), "a")), r"found <U1 of shape \[4, 2\]"),
        ("x.npy", lambda path: np.save(path, np.zeros((4, 2), complex)), "real.*found complex128"),
        ("x.npy", lambda path: np.save(path, np.zeros(4)), r"found float64 of shape \[4\]"),
        ("x.npy", lambda path: np.save(path, np.zeros((4, 2, 1))), r"shape \[4, 2, 1\]"),
        ("x.npy", lambda path: np.save(path, np.zeros((4, 0))), r"shape \[4, 0\]"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, name, save, message):
    save(tmp_path / name)
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        FromFile(tmp_path / name, tmp_path / "names.txt")(ITEMS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_rows_that_are_not_finite_are_named(tmp_path, value):
    vectors = np.ones((5, 2))
    vectors[[0, 3], 1] = value  # Row 0 is of no item.
    np.save(tmp_path / "vectors.npy", vectors)
    (tmp_path / "names.txt").write_text("other\nd\nc\nb\na\n")
    message = r"vectors.npy, row 3: features must be finite in float32 \(item 'b'\)"
    with pytest.raises(DataError, match=message):
        FromFile(tmp_path / "vectors.npy", tmp_path / "names.txt")(ITEMS)


@pytest.mark.parametrize(
    ("module", "embed", "extra"),
    [
        ("sklearn.decomposition", TfIdf(3), "convert"),
        ("sentence_transformers", SentenceEncoder("any"), "sentence"),
    ],
)
def test_missing_extras_are_named(monkeypatch, module, embed, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'ega-jax\[{extra}\]'"):
        embed(ITEMS)
