"""More items for a trained workdir: codes, scale, what is refused, and failures that leave it."""

import json
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_runs
from tiny_runs import NUM_POIS, STEPS, tiny_config

from ega_jax.data.tables import DataError
from ega_jax.errors import UserError
from ega_jax.phases import extension, tokenization
from ega_jax.phases.extension import extend
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.reward import items_of, standardise
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir, read_config
from ega_jax.training.mesh import data_mesh

ADDED = 3


@pytest.fixture(autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A pre-trained workdir with a system's folder, and its settings."""
    root = tmp_path_factory.mktemp("trained")
    settings = tiny_config(tiny_runs.write_ad_log(root / "data"), kind="kmeans")
    check_workdir(root / "run", settings.to_dict())
    with jax.numpy_rank_promotion("allow"):
        Pretraining(settings, root / "run", data_mesh()).train_generator()
    check_workdir(root / "run" / "systems" / "ega", settings.to_dict())
    return settings, root / "run"


@pytest.fixture
def run(trained, tmp_path):
    """The trained workdir, to be changed."""
    settings, workdir = trained
    return Pretraining(settings, shutil.copytree(workdir, tmp_path / "run"), data_mesh())


def appended(path, rows, owners=False):
    """Adds items to a file, with random embeddings."""
    table = pq.read_table(path)
    first, width = table.num_rows, len(table["embedding"][0])
    values = np.random.default_rng(9).normal(size=(rows, width)).astype(np.float32)
    columns = {
        table.column_names[0]: pa.array(np.arange(first, first + rows, dtype=np.int32)),
        "embedding": pa.FixedSizeListArray.from_arrays(values.ravel(), width),
    }
    if owners:
        columns["poi_id"] = pa.array(np.full(rows, NUM_POIS, np.int32))
    more = pa.table({name: columns[name] for name in table.column_names}).cast(table.schema)
    pq.write_table(pa.concat_tables([table, more]), path)


def larger(run, folder):
    """The data of a run with more POIs and creatives."""
    shutil.copytree(run.folder, folder)
    appended(folder / "pois.parquet", ADDED)
    appended(folder / "creatives.parquet", 2, owners=True)
    return folder


def contents(workdir):
    return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_known_items_keep_their_codes_and_new_ones_have_their_own(run, tmp_path):
    known = {name: tokens.codes for name, tokens in run.tokens.items()}
    before = run.restore_generator()
    folder = larger(run, tmp_path / "more")
    assert extend(run, str(folder)) == {"poi": ADDED, "creative": 2}
    settings = type(run.settings).from_dict(read_config(run.workdir))
    assert settings.data.path == str(folder)
    again = Pretraining(settings, run.workdir, data_mesh())
    assert {n: len(t.codes) for n, t in again.tokens.items()} == {
        "poi": NUM_POIS + ADDED, "creative": 2 * NUM_POIS + 2,
    }  # fmt: skip
    for name, codes in known.items():
        np.testing.assert_array_equal(again.tokens[name].codes[: len(codes)], codes)
        assert again.tokens[name].num_fitted == len(codes)
    for x, y in zip(*map(jax.tree.leaves, (before, again.restore_generator())), strict=True):
        np.testing.assert_array_equal(x, y)
    assert read_config(run.workdir / "systems" / "ega")["data"]["path"] == str(folder)
    assert not (run.workdir / extension.STAGING).exists()


def test_nearest_codes_of_new_items_are_those_of_the_frozen_tokenizer(run, tmp_path):
    """Codes but the last are the nearest ones, whatever is taken: an oracle by loops."""
    folder = larger(run, tmp_path / "more")
    extend(run, str(folder))
    again = Pretraining(run.settings.changed({"data.path": str(folder)}), run.workdir, run.mesh)
    place, shape = run.workdir / "tokenizers" / "poi", again.dataset.item_embedding.shape
    fitted, _ = tokenization._restore(place, run.settings.tokenizer, shape)
    for row in range(NUM_POIS, NUM_POIS + ADDED):
        left = (again.dataset.item_embedding[row] - fitted.mean) / fitted.scale
        for layer, codebook in enumerate(np.asarray(fitted.codebooks)[:-1]):
            nearest = np.argmin(((left - codebook) ** 2).sum(axis=1))
            assert again.tokens["poi"].codes[row, layer] == nearest
            left = left - codebook[nearest]


def test_the_scale_of_embeddings_is_that_of_the_known_items(run, tmp_path):
    items = items_of(run.ad_log, run.catalogue)
    folder = larger(run, tmp_path / "more")
    extend(run, str(folder))
    again = Pretraining(run.settings.changed({"data.path": str(folder)}), run.workdir, run.mesh)
    fitted = tuple(again.tokens[name].num_fitted for name in ("poi", "creative"))
    more = items_of(again.ad_log, again.catalogue, fitted)
    np.testing.assert_array_equal(more.poi_embedding[:NUM_POIS], items.poi_embedding)
    known = len(items.creative_embedding)
    np.testing.assert_array_equal(more.creative_embedding[:known], items.creative_embedding)
    raw = again.dataset.item_embedding
    assert np.abs(standardise(raw)[:NUM_POIS] - items.poi_embedding).max() > 1e-3


def test_twice_is_as_once(run, tmp_path):
    """Items that were added are known the next time, and the scale stays the first."""
    first = larger(run, tmp_path / "more")
    extend(run, str(first))
    again = Pretraining(run.settings.changed({"data.path": str(first)}), run.workdir, run.mesh)
    codes = again.tokens["poi"].codes
    second = shutil.copytree(first, tmp_path / "most")
    appended(second / "pois.parquet", 1)
    assert extend(again, str(second)) == {"poi": 1, "creative": 0}
    last = Pretraining(run.settings.changed({"data.path": str(second)}), run.workdir, run.mesh)
    np.testing.assert_array_equal(last.tokens["poi"].codes[:-1], codes)
    assert last.tokens["poi"].num_fitted == NUM_POIS
    assert extend(last, str(second)) == {"poi": 0, "creative": 0}, "nothing new is welcome"


def test_training_goes_on_with_the_new_data(run, tmp_path):
    folder = larger(run, tmp_path / "more")
    extend(run, str(folder))
    changes = {"data.path": str(folder), "training.num_steps": 2 * STEPS}
    again = Pretraining(run.settings.changed(changes), run.workdir, run.mesh)
    again.train_generator()
    assert again.is_finished


def test_a_changed_item_is_named_and_nothing_is_changed(run, tmp_path):
    folder, before = larger(run, tmp_path / "more"), contents(run.workdir)
    path = folder / "pois.parquet"
    table = pq.read_table(path)
    values = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    values[[5, 7]] += 1
    kind = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    pq.write_table(table.set_column(1, "embedding", kind), path)
    with pytest.raises(UserError, match="poi 5: another embedding than before; known items keep"):
        extend(run, str(folder))
    assert contents(run.workdir) == before


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        (lambda values: values[:, :3], "more", "poi: embeddings of width 3, 4 before; known items"),
        (lambda values: values + 1, ".", f"some of the first {NUM_POIS} items of kind poi changed"),
    ],
)
def test_other_changes_of_known_items_are_named(run, tmp_path, change, place, message):
    """Data may be changed at the place of the old ones, which then cannot tell the item."""
    folder, before = larger(run, tmp_path / "more"), contents(run.workdir)
    if place == ".":
        run = Pretraining(
            run.settings.changed({"data.path": str(folder)}), run.workdir, data_mesh()
        )
    path = folder / "pois.parquet"
    table = pq.read_table(path)
    values = change(np.stack(table["embedding"].to_numpy(zero_copy_only=False)))
    kind = pa.FixedSizeListArray.from_arrays(np.ravel(values), values.shape[1])
    pq.write_table(table.set_column(1, "embedding", kind), path)
    with pytest.raises(UserError, match=message):
        extend(run, str(folder))
    assert contents(run.workdir) == before


def test_data_that_grew_in_place_are_taken(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "data")
    run = Pretraining(run.settings.changed({"data.path": str(folder)}), run.workdir, data_mesh())
    appended(folder / "pois.parquet", ADDED)
    assert extend(run, str(folder)) == {"poi": ADDED, "creative": 0}


def test_items_that_are_gone_are_refused(run, tmp_path):
    folder, before = shutil.copytree(run.folder, tmp_path / "fewer"), contents(run.workdir)
    path = folder / "creatives.parquet"
    shown = pq.read_table(path)
    pq.write_table(shown.slice(0, shown.num_rows - 1), path)
    with pytest.raises((UserError, DataError)):
        extend(run, str(folder))
    assert contents(run.workdir) == before


def test_sequences_with_interactions_are_refused(run):
    settings = run.settings.changed({"data.interactions": 0.5})
    with pytest.raises(UserError, match=r"config\.data\.interactions is 0\.5: such tokens"):
        extend(Pretraining(settings, run.workdir, run.mesh), settings.data.path)


@pytest.mark.parametrize("failing", ["check_workdir", "restore_tree", "os"])
def test_after_a_failure_the_workdir_is_as_it_was(run, tmp_path, monkeypatch, failing):
    folder, before = larger(run, tmp_path / "more"), contents(run.workdir)
    calls = []

    def fails(*args):
        calls.append(args)
        raise OSError("no space left")

    if failing == "os":  # The second file of the commit.
        real = extension.os.replace
        once = lambda *args: fails(*args) if calls or calls.append(args) else real(*args)
        monkeypatch.setattr(extension.os, "replace", once)
    else:
        monkeypatch.setattr(extension, failing, fails)
    with pytest.raises(OSError, match="no space left"):
        extend(run, str(folder))
    monkeypatch.undo()
    assert contents(run.workdir) == before
    assert extend(run, str(folder)) == {"poi": ADDED, "creative": 2}


def test_a_process_that_was_killed_loses_no_tokens(run, tmp_path):
    """Killed when the old tokens were moved away; the next run puts them back first."""
    staging = run.workdir / extension.STAGING
    staging.mkdir()
    (run.workdir / "tokenizers").rename(staging / "replaced")
    folder = larger(run, tmp_path / "more")
    assert extend(run, str(folder)) == {"poi": ADDED, "creative": 2}


def test_other_data_are_refused_without_it(run, tmp_path):
    folder = larger(run, tmp_path / "more")
    again = Pretraining(run.settings.changed({"data.path": str(folder)}), run.workdir, run.mesh)
    with pytest.raises(ConfigMismatchError, match="embeddings_crc32"):
        _ = again.tokens


def test_the_config_stays_json(run, tmp_path):
    extend(run, str(larger(run, tmp_path / "more")))
    text = (run.workdir / "config.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
