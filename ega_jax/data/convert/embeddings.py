"""Item embeddings for converted data: made from text, or read from a file of the user."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ega_jax.data.convert.raw_files import RawFile
from ega_jax.data.convert.source import ItemText
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError

_ARRAY = "a .npy file (numpy.save) with an array [rows, E] of real numbers"


class Embedder(Protocol):
    """Anything that turns items into vectors."""

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32."""
        ...


@dataclasses.dataclass(frozen=True)
class TfIdf:
    """TF-IDF of the words, projected by a singular value decomposition, of unit length."""

    width: int  # E; less if there are fewer words.

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32; zeros for an item without known words."""
        try:
            from sklearn.decomposition import TruncatedSVD
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise UserError(
                "TF-IDF embeddings need scikit-learn: pip install 'ega-jax[convert]'"
            ) from error
        try:
            weights = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(
                [item.words for item in items]
            )
        except ValueError as error:
            raise DataError("metadata", f"no words to make embeddings of ({error})") from error
        if weights.shape[1] < 2:
            raise DataError("metadata", "all texts together have one word; embeddings need two")
        width = min(self.width, *weights.shape)
        vectors = TruncatedSVD(width, random_state=0).fit_transform(weights)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FromFile:
    """Rows of a `.npy` array, with a text file that names the item of each row."""

    array: Path  # [rows, E] of numbers.
    names: Path  # one item id a line, as many as rows.

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32.

        Raises:
          DataError: a file is missing or of another kind, they do not fit, an id is there twice,
            or an item has no row or one that is not finite.
        """
        array, row_of = _read_array(self.array), _read_names(self.names)
        if len(array) != len(row_of):
            rule = f"the array has {len(array)} rows, but {self.names} has {len(row_of)} ids"
            raise DataError(self.array, f"{rule}; expected one id for each row")
        missing = next((item.item for item in items if item.item not in row_of), None)
        if missing is not None:
            raise DataError(self.names, f"item '{missing}' of the reviews has no row")
        rows = np.array([row_of[item.item] for item in items])
        with np.errstate(over="ignore"):  # What float32 cannot hold becomes infinite.
            vectors = np.asarray(array[rows], np.float32)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if bad.size:
            rule = f"features must be finite in float32 (item '{items[bad[0]].item}')"
            raise DataError(self.array, rule, row=int(rows[bad[0]]))
        return vectors


def _read_array(path: Path) -> np.ndarray:
    """A memory-mapped array `[rows, E]` of numbers."""
    if not path.is_file():
        rule = "this is a folder" if path.is_dir() else "the file does not exist"
        raise DataError(path, f"{rule}; expected {_ARRAY}")
    with path.open("rb") as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
    if start != np.lib.format.MAGIC_PREFIX:
        kind = "a zip archive, as .npz and .pt files are" if start[:2] == b"PK" else "no .npy file"
        raise DataError(path, f"the file is {kind}; expected {_ARRAY}")
    try:
        array = np.load(path, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(path, f"cannot be read ({error}); expected {_ARRAY}") from error
    if array.ndim != 2 or array.dtype.kind not in "fiu" or not array.size:
        found = f"found {array.dtype} of shape {list(array.shape)}"
        raise DataError(path, f"expected {_ARRAY}, {found}")
    return array


def _read_names(path: Path) -> dict[str, int]:
    """The row of each id, which is its place in the file.

    Raises:
      DataError: the file cannot be read, or a line is empty or the same as an earlier one.
    """
    with RawFile.inspect(path).open() as file:
        names = [line.strip() for line in file.read().rstrip().split("\n")]
    row_of: dict[str, int] = {}
    for row, name in enumerate(names):
        if not name:
            raise DataError(path, f"line {row + 1} is empty; expected one item id a line")
        if row_of.setdefault(name, row) != row:
            raise DataError(path, f"line {row + 1}: id '{name}' is also on line {row_of[name] + 1}")
    return row_of


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Sentence embeddings by a pre-trained model, of unit length."""

    model: str  # name or folder of a sentence-transformers model.

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32."""
        try:
            from sentence_transformers import SentenceTransformer  # pyrefly: ignore
        except ImportError as error:
            raise UserError(
                "sentence embeddings need sentence-transformers: pip install 'ega-jax[sentence]'"
            ) from error
        encoder = SentenceTransformer(self.model)
        vectors = encoder.encode([item.words for item in items], normalize_embeddings=True)
        return np.asarray(vectors, np.float32)
