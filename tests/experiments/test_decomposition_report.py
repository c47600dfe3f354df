"""How a decomposition is shown, and what the command refuses."""

import pytest
from absl.testing import flagsaver
from matplotlib import image

from ega_jax.evaluation.records import read_records
from ega_jax.evaluation.report import write_results
from experiments import decomposition, tables
from experiments.common import runs, workdirs
from experiments.common.protocol import kind_of
from experiments.configs.market import settings

CASCADE = ("attainable", "recalled", "ranked", "listed", "placed", "shown", "paid")
ALONE = ("attainable", "placed", "shown", "paid")
CEILINGS = {
    "visible": {"currency": 4.25, "share": 0.85},
    "menu": {"currency": 3.1, "share": 0.62},
}


def chain(*names):
    """A chain of which every slate loses a tenth."""
    return {
        name: {"currency": 5.0 - n / 2, "share": 1.0 - n / 10, "lost": 0.1 if n else 0.0}
        for n, name in enumerate(names)
    }


def test_every_loss_has_a_stage():
    stages = decomposition.stages_of(chain(*CASCADE))
    ranking = "pre-ranking and ranking"
    assert stages == ["", "recall", ranking, "auction", "allocation", "creatives", "prices"]
    alone = decomposition.stages_of(chain(*ALONE))
    assert alone == ["", "choice of items", "creatives", "prices"]


def test_table_and_figure(capsys, tmp_path):
    found = chain(*CASCADE) | CEILINGS
    decomposition.print_losses(found, "mca, 8 sessions")
    lines = capsys.readouterr().out.splitlines()
    line_of = lambda name: next(line for line in lines if name in line)
    for text in ("2", "40.0 %", "10.0 %", "prices"):
        assert text in line_of("paid")
    for text in ("4.25", "85.0 %", "ceiling"):
        assert text in line_of("visible")
    path = decomposition.draw_losses(found, tmp_path / "figures" / "decomposition.png")
    assert image.imread(path).std() > 0


def test_one_line_and_one_group_of_bars_per_system(capsys, tmp_path):
    found = {"mca": chain(*CASCADE) | CEILINGS, "ega": chain(*ALONE) | CEILINGS}
    decomposition.print_systems(found, "8 sessions")
    lines = capsys.readouterr().out.splitlines()
    mca, ega = (next(line for line in lines if name in line) for name in found)
    for text in ("5 (100.0 %)", "4.25 (85.0 %)", "3.1 (62.0 %)", "2.5 (50.0 %)", "2 (40.0 %)"):
        assert text in mca
    for text in ("5 (100.0 %)", "4.25 (85.0 %)", "3.1 (62.0 %)", "4 (80.0 %)", "3.5 (70.0 %)"):
        assert text in ega
    path = decomposition.draw_systems(found, tmp_path / "figures" / "decomposition.png")
    with_all = image.imread(path)
    for measured in found.values():
        del measured["visible"]
    decomposition.print_systems(found, "8 sessions")
    assert "visible" not in capsys.readouterr().out
    assert (image.imread(decomposition.draw_systems(found, path)) != with_all).any()


def test_ceilings_are_recorded_for_the_frontier_of_the_tables(monkeypatch, tmp_path):
    found = {"mca": chain(*CASCADE) | CEILINGS, "ega": chain(*ALONE) | CEILINGS}
    found["ega"]["attainable"] = {"currency": 6.0, "share": 1.0, "lost": 0.0}
    own = settings("small").changed({"data.market.seed": 3, "data.market.num_slots": 6})
    decomposition.record_ceilings(found, own, 6, tmp_path)
    record, *others = read_records(tmp_path / "ceilings", kind_of(own))
    assert (record["market"], record["sessions"], others) == (3, 128, [])
    assert record["value"] == pytest.approx({"attainable": 1000.0, "visible": 4250 / 6})

    drawn = []
    keep = lambda runs, tables, folder, ceilings: drawn.append(ceilings)
    monkeypatch.setattr(tables, "write_tables", keep)
    with flagsaver.flagsaver(results=str(tmp_path)):
        tables.merge(own, tmp_path)
    assert drawn == [{3: record["value"]}]


def test_a_system_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(workdirs, "find_workdir", lambda: ({}, tmp_path))
    missing = pytest.raises(FileNotFoundError, match="no system 'mca'")
    with flagsaver.flagsaver(system="mca"), missing:
        decomposition.main()


def test_all_systems_of_a_workdir_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "find_system", lambda workdir, name: name)
    for name in ("mca", "ega"):
        (tmp_path / "systems" / name).mkdir(parents=True)
        (tmp_path / "systems" / name / "config.json").write_text("{}")
    write_results(tmp_path, {"systems": {"mca": {}, "ega": {}, "ega-clarke": {}}})
    assert runs.find_systems(tmp_path, "all") == ["mca", "ega"], (
        "other payment rules are no systems"
    )
    assert runs.find_systems(tmp_path, "ega,mca,ega") == ["ega", "mca"]
    assert runs.find_systems(tmp_path, "mca") == ["mca"]
