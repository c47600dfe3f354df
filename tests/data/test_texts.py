import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ega_jax.data.item_rules import TAGS
from ega_jax.data.tables import open_table
from ega_jax.data.texts import read_tags, read_texts


def written(tmp_path, *arrays):
    """A table of parts, one for each array."""
    (tmp_path / "items.parquet").mkdir()
    for number, array in enumerate(arrays):
        path = tmp_path / "items.parquet" / f"{number}.parquet"
        columns = {"item_id": range(len(array)), "text": array}
        if array.type == pa.null():
            del columns["text"]
        pq.write_table(pa.table(columns), path)
    return open_table(tmp_path / "items.parquet", {}, {"text": TAGS})


@pytest.mark.parametrize(
    ("array", "tags"),
    [
        (pa.array([["Bar", "Cafe"], [], None]), [["Bar", "Cafe"], [], []]),
        (pa.array(["Bar", "", None]), [["Bar"], [], []]),
        (pa.array(["Bar", "Cafe", "Bar"]).dictionary_encode(), [["Bar"], ["Cafe"], ["Bar"]]),
        (pa.array([["Bar"], ["Bar"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
         [["Bar"], ["Bar"]]),
        (pa.array([b"Caf\xc3\xa9"]), [["Café"]]),
        (pa.array([[["Beauty", "Hair"], ["Skin"]]]), [["Beauty", "Hair", "Skin"]]),
        (pa.array([3, 4]), [["3"], ["4"]]),
        (pa.array([[3], [4, 5]]), [["3"], ["4", "5"]]),
        (pa.array([[], []], pa.list_(pa.null())), [[], []]),
        (pa.array([{"name": "Bar"}]), [[]]),
        (pa.array([[("Bar", 1)]], pa.map_(pa.string(), pa.int8())), [[]]),
    ],
)  # fmt: skip
def test_tags_of_any_type(tmp_path, array, tags):
    assert read_tags(written(tmp_path, array), "text") == tags


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array(["Bar", None]), ["Bar", None]),
        (pa.array(["Bar"], pa.large_string()), ["Bar"]),
        (pa.array([b"Bar"]), ["Bar"]),
        (pa.array([1984]), ["1984"]),
        (pa.array([["Bar"]]), [None]),
    ],
)
def test_texts_of_any_type(tmp_path, array, texts):
    assert read_texts(written(tmp_path, array), "text") == texts


def test_a_part_may_lack_the_column(tmp_path):
    table = written(tmp_path, pa.array(["Bar"]), pa.nulls(2), pa.array([["Cafe"]]))
    assert read_tags(table, "text") == [["Bar"], [], [], ["Cafe"]]
