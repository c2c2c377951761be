"""Tables in documents are made from results files, not typed."""

from benchmarks import foundation_model
from hb_ssl.files import read_json
from hb_ssl.inference import BUNDLED_CLASSIFIER
from hb_ssl.models.folders import BUNDLED_BACKBONE
from hb_ssl.pretraining.card import backbone_card


def test_readme_holds_the_scores_of_the_results() -> None:
    results = read_json(foundation_model.RESULTS / "foundation_model.json")["results"]
    text = foundation_model.README.read_text(encoding="utf-8")
    assert foundation_model.with_short_table(text, results) == text
    full = results["set_b"]["pcg_full"]["intervals"]["overall"]["recording_uar"]
    row = next(line for line in text.splitlines() if line.startswith("| our backbone: full |"))
    assert f" {full['value']:.3f} ({full['low']:.3f}-{full['high']:.3f}) " in row


def test_the_bundled_classifiers_card_says_what_its_threshold_does() -> None:
    trust = read_json(foundation_model.RESULTS / "trust.json")["results"]["pcg_lora-merge"]
    stated = trust["selective"]["stated_risk"]
    for text in (BUNDLED_CLASSIFIER / "README.md", foundation_model.README):
        words = text.read_text(encoding="utf-8").replace(" %", "%")
        assert f"answers {stated['coverage']['value']:.0%} of the recordings" in words
        assert f"{stated['risk']['value']:.0%} of the answers" in words.replace("\n", " ")


def test_the_bundled_backbones_card_is_that_of_its_run() -> None:
    result = read_json(foundation_model.RESULTS / "pretrain_pcg.json")["result"]
    card = (BUNDLED_BACKBONE / "README.md").read_text(encoding="utf-8")
    made = backbone_card(result, 2000).splitlines()
    assert set(made) <= set(card.splitlines())  # what was added by hand stands between
