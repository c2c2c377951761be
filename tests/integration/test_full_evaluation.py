"""`hb-ssl evaluate RUN --full` on simulated recordings: files, report, model, refusals."""

import json
import shutil
from pathlib import Path

import pytest

from hb_ssl import full_evaluation
from hb_ssl.cli import main
from hb_ssl.data.synthetic_dataset import write_synthetic_dataset
from hb_ssl.errors import UserError
from hb_ssl.evaluation import compare
from hb_ssl.evaluation.robustness import DAMAGES
from hb_ssl.files import read_json, write_json_atomic
from hb_ssl.full_evaluation import attach_to_model, evaluation_summary


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setenv("HB_SSL_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(full_evaluation, "FITTING_EACH", 3)
    patch.setattr(full_evaluation, "TESTING_EACH", 2)
    patch.setattr(full_evaluation, "NUM_DAMAGED", 4)
    patch.setattr(compare, "NUM_RESAMPLES", 50)
    for kind, (unit, levels, what) in DAMAGES.items():
        patch.setitem(DAMAGES, kind, (unit, levels[::3], what))
    yield write_synthetic_dataset(tmp_path_factory.mktemp("data") / "pcg", 60, seed=1)
    patch.undo()


@pytest.fixture(scope="module")
def cv_run(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cv"
    options = ["--source", str(recordings), "--method", "logistic_regression"]
    options += ["--num_folds", "2", "--num_repeats", "2", "--output_dir", str(folder)]
    assert main(["cv", *options]) == 0
    assert main(["evaluate", str(folder), "--full", "--risk", "0.3"]) == 0
    return folder


@pytest.fixture(scope="module")
def train_run(recordings: Path, ast_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "train"
    options = [
        "--source", str(recordings), "--backbone", str(ast_folder), "--window_seconds", "1",
        "--hop_seconds", "1", "--epochs", "1", "--windows_per_recording", "1", "--tracker", "none",
        "--output_dir", str(folder),
    ]  # fmt: skip
    assert main(["train", *options]) == 0
    return folder


def test_a_cross_validation_gets_every_part(cv_run: Path) -> None:
    full = read_json(cv_run / "full_evaluation.json")
    assert full["left_out"] == {}
    assert full["calibration"]["model"]["risk"] == 0.3
    assert set(full["robustness"]["curves"]) == set(DAMAGES)
    assert full["robustness"]["n"] == 4
    assert set(full["device"]["probe"]) == {
        "hand-made features, full band", "hand-made features, 25 to 195 Hz"
    }  # fmt: skip
    assert set(full["intervals"]) == {"overall", "set_a", "set_b", "without_simulator"}


def test_report_shows_it_and_says_first_what_the_device_explains(cv_run: Path) -> None:
    page = (cv_run / "report.md").read_text()
    first_page = page[: page.index("## Scores by part")]
    assert "the device alone" in first_page and "above guessing" in first_page
    for heading in ("Calibration", "Abstaining when unsure", "Is it a heart sound at all?",
                    "The device", "Damaged recordings"):  # fmt: skip
        assert f"### {heading}" in page
    for name in ("calibration", "risk-coverage", "robustness-noise", "robustness-heart-rate"):
        assert (cv_run / "figures" / f"{name}.png").is_file()
    assert "robustness-codec" in (cv_run / "report.html").read_text()


def test_summary_for_a_model_card(cv_run: Path, tmp_path: Path) -> None:
    summary = evaluation_summary(cv_run)
    assert 0 <= summary["ece_after"] <= 1 and 0 <= summary["answered"] <= 1
    assert {"uar", "uar_answered", "wrong_of_answered"} < set(summary)
    assert set(summary["robustness"]) == set(DAMAGES)
    assert evaluation_summary(tmp_path) == {}


def test_train_run_is_probed_and_its_model_gets_calibration_and_gate(train_run: Path) -> None:
    assert "--full`" in (train_run / "report.md").read_text().replace("\\", "")
    assert main(["evaluate", str(train_run), "--full", "--attach", str(train_run)]) == 0
    full = read_json(train_run / "full_evaluation.json")
    assert "embeddings, full band" in full["device"]["probe"], full["left_out"]
    assert full["robustness"]["curves"]["rate"]["points"]
    about = read_json(train_run / "model" / "preprocessing.json")
    if "calibration" in full:  # few test recordings may not allow it; then it says so
        assert set(about["calibration"]) >= {"temperature", "bias", "abstain_below", "fitted_on"}
    else:
        assert "calibration" in full["left_out"]
    assert about["heart_sound_gate"]["threshold"] == full["heart_sound_gate"]["gate"]["threshold"]


def test_calibration_goes_only_to_a_model_of_the_same_classes(
    cv_run: Path, train_run: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(train_run / "model", model)
    attach_to_model(cv_run, model)
    about = read_json(model / "preprocessing.json")
    assert about["calibration"]["fitted_on"].startswith("out-of-fold predictions of cv")
    write_json_atomic(model / "preprocessing.json", {**about, "labels": ["murmur", "normal"]})
    with pytest.raises(UserError, match="expected the same classes"):
        attach_to_model(cv_run, model)
    with pytest.raises(UserError, match="not fully evaluated"):
        attach_to_model(tmp_path, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--full", "--source", "x"], "leave --source out"),
        (["--full", "--risk", "2"], "expected more than 0 and less than 1"),
        (["--attach", "x"], "add --full"),
    ],
)
def test_options_that_do_not_go_together(options, message, tmp_path, capsys) -> None:
    assert main(["evaluate", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_unreachable_recordings_leave_parts_out_by_name(cv_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cv"
    shutil.copytree(cv_run, copy)
    config = (copy / "config.yaml").read_text().splitlines()
    config = [f"source: {tmp_path}/gone" if c.startswith("source:") else c for c in config]
    (copy / "config.yaml").write_text("\n".join(config))
    path = full_evaluation.evaluate_fully(copy)
    full = json.loads(path.read_text())
    assert set(full["left_out"]) == {"heart_sound_gate", "robustness"}
    assert "can't be reached any more" in full["left_out"]["robustness"]
    assert full["device"]["share"]["sentence"] and "gone" in full["device"]["left_out"]
