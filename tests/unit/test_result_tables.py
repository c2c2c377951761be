"""Tables in documents are made from results files, not typed."""

from benchmarks import foundation_model
from hb_ssl.files import read_json


def test_readme_holds_the_scores_of_the_results() -> None:
    results = read_json(foundation_model.RESULTS / "foundation_model.json")["results"]
    text = foundation_model.README.read_text(encoding="utf-8")
    assert foundation_model.with_short_table(text, results) == text
    full = results["set_b"]["pcg_full"]["intervals"]["overall"]["recording_uar"]
    row = next(line for line in text.splitlines() if line.startswith("| our backbone: full |"))
    assert f" {full['value']:.3f} ({full['low']:.3f}-{full['high']:.3f}) " in row
