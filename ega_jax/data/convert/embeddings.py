"""Item embeddings for converted data: from text, or from a file of the user's."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from ega_jax.data.convert.source import ItemText
from ega_jax.data.tables import DataError


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
            raise ImportError(
                "TF-IDF embeddings need scikit-learn: pip install 'ega-jax[convert]'"
            ) from error
        try:
            weights = TfidfVectorizer(sublinear_tf=True, stop_words="english").fit_transform(
                [item.words for item in items]
            )
        except ValueError as error:
            raise DataError("metadata", f"no words to make embeddings of ({error})") from error
        width = min(self.width, *weights.shape)
        vectors = TruncatedSVD(width, random_state=0).fit_transform(weights)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class FromFile:
    """Rows of a `.npy` array, found through a text file that names the item of each row."""

    array: Path  # [rows, E] of floats.
    names: Path  # one source id a line, as many as rows.

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32.

        Raises:
          DataError: a file is missing, they do not fit, or an item has no row.
        """
        for path in (self.array, self.names):
            if not path.is_file():
                raise DataError(path, "the file does not exist")
        vectors = np.load(self.array, mmap_mode="r")
        row_of = {name: row for row, name in enumerate(self.names.read_text().splitlines())}
        if vectors.ndim != 2 or len(vectors) != len(row_of):
            rule = f"expected an array [{len(row_of)}, E], a row per line of {self.names}"
            raise DataError(self.array, f"{rule}, found {list(vectors.shape)}")
        missing = next((item.item for item in items if item.item not in row_of), None)
        if missing is not None:
            raise DataError(self.names, f"item '{missing}' of the reviews has no row")
        return np.asarray(vectors[[row_of[item.item] for item in items]], np.float32)


@dataclasses.dataclass(frozen=True)
class SentenceEncoder:
    """Sentence embeddings by a pre-trained model, of unit length."""

    model: str  # name or folder of a sentence-transformers model.

    def __call__(self, items: Sequence[ItemText]) -> np.ndarray:
        """`[P, E]` float32."""
        try:
            from sentence_transformers import SentenceTransformer  # pyrefly: ignore
        except ImportError as error:
            raise ImportError(
                "sentence embeddings need sentence-transformers: pip install 'ega-jax[sentence]'"
            ) from error
        encoder = SentenceTransformer(self.model)
        vectors = encoder.encode([item.words for item in items], normalize_embeddings=True)
        return np.asarray(vectors, np.float32)
