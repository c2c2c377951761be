"""Device probes and shares on features whose answer is known."""

import numpy as np
import pytest

from hb_ssl.data.splits import Item
from hb_ssl.errors import UserError
from hb_ssl.evaluation.device import cross_device, device_probe, device_share, shared_items

LABELS = ("artifact", "extrahls", "murmur", "normal")


def _items(num=240):
    items = []
    for n in range(num):
        set_ = "ab"[n % 2]
        label = (
            ("artifact", "murmur", "normal")[n // 2 % 3] if set_ == "a" else LABELS[n // 2 % 2 + 2]
        )
        items.append(Item(f"r{n}", label, set_, f"{set_}{n // 6}"))
    return items


def test_only_classes_of_both_devices_take_part():
    items = _items()
    kept = [item.label for item, use in zip(items, shared_items(items), strict=True) if use]
    assert set(kept) == {"murmur", "normal"}
    everyone_artifact = [Item(i.recording_id, "artifact", i.set, i.group) for i in items]
    assert not shared_items(everyone_artifact).any()


def test_probe_finds_a_device_that_is_there_and_none_that_is_not():
    items = _items()
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(len(items), 8))
    blind = device_probe(noise, items)
    assert blind["balanced_accuracy"]["value"] == pytest.approx(0.5, abs=0.12)
    heard = noise.copy()
    heard[:, 0] += [4 * (item.set == "b") for item in items]
    found = device_probe(heard, items)
    assert found["balanced_accuracy"]["value"] > 0.93 and found["labels"] == ["murmur", "normal"]


def test_cross_device_falls_where_the_device_flips_the_sign():
    items = _items()
    rng = np.random.default_rng(0)
    murmur = np.array([item.label == "murmur" for item in items])
    in_b = np.array([item.set == "b" for item in items])
    features = rng.normal(size=(len(items), 4))
    features[:, 0] += np.where(murmur, 2, -2)  # means the same on both devices
    good = cross_device(features, items)
    assert min(good["a_to_b"]["value"], good["b_to_a"]["value"]) > 0.9
    features[:, 0] = rng.normal(size=len(items)) + np.where(murmur ^ in_b, 2, -2)
    bad = cross_device(features, items)
    assert max(bad["a_to_b"]["value"], bad["b_to_a"]["value"]) < 0.1
    assert min(bad["within_a"]["value"], bad["within_b"]["value"]) > 0.9


def test_one_device_alone_is_refused():
    items = [item for item in _items() if item.set == "b"]
    with pytest.raises(UserError, match="share fewer than two classes"):
        device_probe(np.zeros((len(items), 2)), items)


def _rows(predict):
    return [
        {"recording_id": i.recording_id, "set": i.set, "group": i.group, "label": i.label,
         "prediction": predict(i)}
        for i in _items()
    ]  # fmt: skip


def test_share_of_the_score_that_the_device_explains():
    labels = ["artifact", "murmur", "normal"]
    device = _rows(lambda i: "artifact" if i.set == "a" else "normal")
    # Recall of the device: artifact 1, murmur 0, normal 60 of 100 (those of set B).
    perfect = device_share(_rows(lambda i: i.label), device, labels)
    assert perfect["device_uar"] == pytest.approx((1 + 0 + 0.6) / 3)
    assert perfect["share"]["value"] == pytest.approx((1.6 / 3 - 1 / 3) / (1 - 1 / 3))
    assert perfect["sentence"].endswith("of what the model scores above guessing.")
    assert "the device alone explains 30%" in perfect["sentence"]
    same = device_share(device, device, labels)
    assert same["share"]["value"] == 1
    useless = device_share(_rows(lambda i: "murmur"), device, labels)
    assert useless["share"]["value"] is None and "no better than guessing" in useless["sentence"]
    with pytest.raises(UserError, match="expected the same recordings"):
        device_share(device[1:], device, labels)
    one = [row for row in device if row["set"] == "b"]
    assert "one device" in device_share(one, one, labels)["sentence"]
