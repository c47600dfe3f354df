"""A packed mechanism is the one that was trained; what is not as it was packed is refused."""

import json
import shutil
import zipfile

import chex
import jax
import pytest
import tiny_runs
from tiny_mechanism import tiny_mechanism
from tiny_models import random_requests

from ega_jax.archive import CONTENTS, pack, unpacked
from ega_jax.errors import UserError
from ega_jax.mechanism import Mechanism, mechanism_folder

FILES = {
    "config.json": json.dumps(
        {"seed": 3, "data": {"path": "/home/a/log", "market": {"sequences": "/b", "seed": 0}}}
    ),
    "results.json": '{"test": {"kept": 1}}',
    "tokenizers/poi/codes": "0 1",
    "systems/ega/config.json": '{"data": {"path": "/home/a/log"}}',
    "data/sessions.parquet": "a log",
    "checkpoints/generator/1/tree": "x",
    "systems/ega/checkpoints/alignment/2/tree": "x",
    "systems/other/mechanism/tree": "x",
}


@pytest.fixture(scope="module", autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with a mechanism, and files of which an archive keeps some."""
    folder = tmp_path_factory.mktemp("packed") / "run"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    tiny_mechanism().save(mechanism_folder(folder, "ega"))
    return folder


@pytest.fixture(scope="module")
def archive(workdir):
    pack(workdir, path := workdir.parent / "ega.zip", "ega")
    return path


def rewritten(archive, to, change):
    """A copy of an archive whose files `change` has changed, removed or added to."""
    with zipfile.ZipFile(archive) as zipped:
        files = {name: zipped.read(name) for name in zipped.namelist()}
    change(files)
    with zipfile.ZipFile(to, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return to


def test_an_archive_serves_the_same_slates(archive):
    restored, request = Mechanism.restore(archive), random_requests(11, 6)
    chex.assert_trees_all_equal(restored.system, tiny_mechanism().system)
    chex.assert_trees_all_equal(restored.allocate(request), tiny_mechanism().allocate(request))
    with pytest.raises(FileNotFoundError, match=f"{archive} holds no mechanism 'gr', but ega"):
        Mechanism.restore(archive, "gr")


def test_an_archive_holds_what_serves_and_no_data(workdir, archive):
    with zipfile.ZipFile(archive) as zipped:
        names = set(zipped.namelist())
    mechanism = mechanism_folder(workdir, "ega")
    own = {str(path.relative_to(workdir)) for path in mechanism.rglob("*") if path.is_file()}
    kept = {name for name in FILES if name.startswith(("config", "results", "tokenizers"))}
    assert names == {CONTENTS, "systems/ega/config.json"} | kept | own
    assert not any(name.endswith((".parquet", ".pkl", ".pickle")) for name in names)


def test_an_archive_does_not_tell_where_data_lay(workdir, archive):
    with unpacked(archive) as folder:
        config = json.loads((folder / "config.json").read_text())
        own = json.loads((folder / "systems" / "ega" / "config.json").read_text())
    assert config == {"seed": 3, "data": {"path": "", "market": {"sequences": "", "seed": 0}}}
    assert own == {"data": {"path": ""}}
    assert "/home/a/log" in (workdir / "config.json").read_text()


def test_packing_again_gives_the_same_contents(workdir, archive, tmp_path):
    pack(workdir, again := tmp_path / "new" / "again.zip", "ega")
    first, second = (zipfile.ZipFile(path).read(CONTENTS) for path in (archive, again))
    assert first == second


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_an_archive_that_was_cut_off_is_refused(archive, tmp_path, share):
    content = archive.read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=rf"{path} is no archive .* or was cut off"):
        Mechanism.restore(path)


def test_an_archive_with_a_flipped_byte_is_refused(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as zipped:
        largest = max(zipped.infolist(), key=lambda info: info.compress_size)
    content[largest.header_offset + 30 + len(largest.filename) + largest.compress_size // 2] ^= 0xFF
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"flipped\.zip is no archive .* or was cut off or changed"):
        Mechanism.restore(tmp_path / "flipped.zip")


def _listed(found, **changes):
    found[CONTENTS] = json.dumps(json.loads(found[CONTENTS]) | changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("results.json"), "incomplete: results.json is missing"),
        (lambda files: files.update({"results.json": "{}"}), "damaged: results.json is not as it"),
        (lambda files: files.update({"a.py": "x"}), "a.py is not in its list of files"),
        (lambda files: files.update({"../a.py": "x"}), r"outside of itself: \.\./a.py"),
        (lambda files: files.update({"/tmp/a.py": "x"}), "outside of itself: /tmp/a.py"),
        (lambda files: files.pop(CONTENTS), "has no list of its files"),
        (lambda files: files.update({CONTENTS: "{"}), "was cut off or changed"),
        (lambda files: files.update({CONTENTS: "[]"}), "has no list of its files"),
        (lambda files: _listed(files, format=9), "is in format 9 and this version .* format 1"),
        (lambda files: _listed(files, files={}), "is not in its list of files"),
    ],
)
def test_a_changed_archive_is_refused(archive, tmp_path, change, message):
    path = rewritten(archive, tmp_path / "changed.zip", change)
    with pytest.raises(UserError, match=message) as raised:
        Mechanism.restore(path)
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)
    assert not (tmp_path.parent / "a.py").exists()


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a zip file")
    with pytest.raises(UserError, match=r"notes\.txt is no archive of experiments\.pack"):
        Mechanism.restore(path)


def test_the_command_packs_a_trained_system(finished, tmp_path):
    out = tmp_path / "out" / "ega.zip"
    arguments = [f"--workdir={finished[1]}", f"--out={out}"]
    code, printed = tiny_runs.run_apart("experiments.pack", arguments, tmp_path)
    assert code == 0, printed
    assert printed.startswith(f"{out}: ")
    expected = Mechanism.restore(finished[1])
    chex.assert_trees_all_equal(Mechanism.restore(out).system, expected.system)


def test_the_command_refuses_what_is_not_trained(finished, tmp_path):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    shutil.copyfile(finished[1] / "config.json", unfinished / "config.json")
    for workdir, message in (
        (tmp_path / "none", "none is not a workdir: run experiments.pretrain first"),
        (unfinished, "run holds no mechanism 'ega', but none"),
    ):
        arguments = [f"--workdir={workdir}", f"--out={tmp_path / 'a.zip'}"]
        code, printed = tiny_runs.run_apart("experiments.pack", arguments, tmp_path)
        assert code == 1
        assert message in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "a.zip").exists()
