import pytest
import tiny_runs


def run(arguments, tmp_path):
    """Exit code and all that the command prints."""
    return tiny_runs.run_apart("experiments.validate", arguments, tmp_path)


def contents(folder):
    return sorted(path for path in folder.rglob("*") if path.name != "printed.txt")


@pytest.mark.parametrize(
    ("write", "lines"),
    [
        (tiny_runs.write_ad_log, ["ad log", "users", "slots (K)", "CTR of the POI by slot"]),
        (tiny_runs.write_sequences, ["sequences", "items", "sequence length.most", "split.test"]),
    ],
)
def test_a_valid_folder_is_described(tmp_path, monkeypatch, write, lines):
    folder = write(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    config = f"--config={tiny_runs.market.__file__}:tiny"
    code, printed = run([config, f"--config.data.path={folder}"], tmp_path)
    assert code == 0, printed
    assert f"{folder}: valid" in printed
    for line in lines:
        assert line in printed
    assert contents(tmp_path) == before, "the command makes no workdir"


def test_warnings_are_printed(tmp_path):
    folder = tiny_runs.write_ad_log(tmp_path / "data")
    _, printed = run([f"--config.data.path={folder}"], tmp_path)
    assert "warning: there is no conversion" in printed


def test_a_broken_rule_is_named(tmp_path):
    folder = tiny_runs.write_ad_log(tmp_path / "data")
    tiny_runs.spoil(folder / "creatives.parquet", 7)
    code, printed = run([f"--config.data.path={folder}"], tmp_path)
    assert code == 1
    assert f"error: {folder}/creatives.parquet, column 'embedding', row 7: features" in printed
    assert "Traceback" not in printed


def test_the_configs_slots_and_fractions_hold(tmp_path):
    folder = tiny_runs.write_ad_log(tmp_path / "data")
    arguments = [f"--config.data.path={folder}", "--config.data.num_slots=2"]
    code, printed = run(arguments, tmp_path)
    assert code == 1
    assert "column 'shown_poi', row 0: at most 2 items fit the slots, found 3" in printed
    arguments[1] = "--config.data.fractions=(0.5, 0.25, 0.1)"
    code, printed = run(arguments, tmp_path)
    assert code == 0
    assert [line.split()[3] for line in printed.splitlines() if "split." in line] == [
        *("30", "15", "6", "9")
    ]


def test_a_folder_must_be_named(tmp_path):
    code, printed = run([], tmp_path)
    assert code == 1
    assert printed == "error: no folder to check: name it with --config.data.path=DIR\n"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (
            "fractions=(0.9,0.1,0.1)",
            "config.data.fractions: (0.9, 0.1, 0.1) leave no test sessions",
        ),
        ("num_slots=-1", "config.data.num_slots is -1: it must be at least 0"),
        ("path=~nobody-here/log", "~nobody-here/log: the folder does not exist"),
    ],
)
def test_wrong_values_of_fields_are_named(tmp_path, field, message):
    folder = tiny_runs.write_ad_log(tmp_path / "data")
    code, printed = run([f"--config.data.path={folder}", f"--config.data.{field}"], tmp_path)
    assert code == 1
    assert f"error: {message}" in printed
    assert "Traceback" not in printed
