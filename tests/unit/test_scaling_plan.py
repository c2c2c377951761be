"""The tables of docs/scaling.md are made from results files, not typed."""

from benchmarks import scaling_plan
from hb_ssl.files import read_json


def test_the_document_holds_the_tables_of_the_results() -> None:
    content = scaling_plan.plan(
        {name: value for name, (value, _, _) in scaling_plan.ASSUMPTIONS.items()},
        read_json(scaling_plan.RESULTS / "streaming.json"),
        read_json(scaling_plan.RESULTS / "pretrain_pcg.json")["result"],
        read_json(scaling_plan.RESULTS / "pretraining_speed.json")["results"]["bfloat16"]["median"],
    )
    text = scaling_plan.DOCUMENT.read_text(encoding="utf-8")
    assert scaling_plan.with_tables(text, content) == text
    rows = {row["model"]: row for row in content["models"]}
    small, large = rows["wav2vec2 2 kHz, S"], rows["wav2vec2 2 kHz, L"]
    # Twice the peak halves the GPU hours; twice the hours double them.
    halved = scaling_plan.plan(
        {**content["assumptions"], "peak": 2 * content["assumptions"]["peak"]},
        read_json(scaling_plan.RESULTS / "streaming.json"),
        read_json(scaling_plan.RESULTS / "pretrain_pcg.json")["result"],
        read_json(scaling_plan.RESULTS / "pretraining_speed.json")["results"]["bfloat16"]["median"],
    )
    assert halved["models"][-1]["gpu_hours"] * 2 == content["models"][-1]["gpu_hours"]
    assert small["parameters"] < large["parameters"] and small["gpu_hours"] < large["gpu_hours"]
