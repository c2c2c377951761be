"""Every backbone family: gradients, save and load, batch independence, stock compatibility."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForAudioClassification

from hb_ssl.data.dataset import FeatureMaker
from hb_ssl.errors import UserError
from hb_ssl.models.backbones import load_feature_extractor
from hb_ssl.models.classifier import (
    adapt,
    build_classifier,
    load_classifier,
    save_classifier,
)
from hb_ssl.models.folders import PREPROCESSING_KEYS
from hb_ssl.models.heads import drop_tokens

LABELS = ["artifact", "extrahls", "murmur", "normal"]


def inputs_for(folder: Path, num_windows: int = 5) -> dict[str, torch.Tensor]:
    make_features = FeatureMaker(load_feature_extractor(str(folder)), window_seconds=1.0)
    rng = np.random.default_rng(0)
    windows = rng.standard_normal((num_windows, make_features.window)).astype(np.float32)
    return {make_features.input_name: torch.from_numpy(make_features(windows))}


@pytest.mark.parametrize("adaptation", ["lora", "full", "probe"])
def test_every_trainable_tensor_gets_a_gradient(backbone: Path, adaptation: str) -> None:
    model = adapt(
        build_classifier(str(backbone), LABELS, pooling="attentive", layer_weighted_sum=True),
        adaptation,
        lora_dropout=0.0,
    )
    if adaptation == "lora":  # B starts at zero, which would hide the gradient of A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.eval()
    logits = model(**inputs_for(backbone)).logits
    logits.log_softmax(-1)[:, 0].sum().backward()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trainable
    # used only with SpecAugment, or by heads that pool the layer sum instead of the last layer
    unused = ("masked_spec_embed", "encoder.layer_norm", "transformer.layernorm")
    missing = [
        n for n, p in trainable.items() if p.grad is None and not any(u in n for u in unused)
    ]
    assert missing == []
    assert any("layer_logits" in name for name in trainable)
    assert any("frame_score" in name for name in trainable)


def test_saved_model_and_adapter_give_equal_logits(backbone: Path, tmp_path: Path) -> None:
    model = adapt(
        build_classifier(str(backbone), LABELS, pooling="attentive", layer_weighted_sum=True),
        "lora",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    inputs = inputs_for(backbone)
    with torch.no_grad():
        expected = model(**inputs).logits
    about = {**dict.fromkeys(PREPROCESSING_KEYS), "labels": LABELS}
    save_classifier(tmp_path / "m", model, load_feature_extractor(str(backbone)), about)
    loaded, _, preprocessing = load_classifier(tmp_path / "m")
    assert preprocessing == about
    base = build_classifier(
        str(backbone), LABELS, pooling="attentive", layer_weighted_sum=True, seed=99
    )
    adapted = PeftModel.from_pretrained(base, str(tmp_path / "m"), subfolder="adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(adapted(**inputs).logits, expected, atol=1e-6, rtol=1e-5)


def test_batch_size_never_changes_a_prediction(backbone: Path) -> None:
    model = build_classifier(str(backbone), LABELS).eval()
    inputs = inputs_for(backbone)
    with torch.no_grad():
        together = model(**inputs).logits
        alone = [model(**{k: v[i : i + 1] for k, v in inputs.items()}).logits for i in range(5)]
    torch.testing.assert_close(torch.cat(alone), together, atol=1e-5, rtol=1e-4)


def test_tokens_are_left_out_in_training_only(ast_folder: Path) -> None:
    model = build_classifier(str(ast_folder), LABELS, pooling="class_token")
    whole = build_classifier(str(ast_folder), LABELS, pooling="class_token").eval()
    drop_tokens(model, 0.5)
    model = adapt(model, "lora", lora_dropout=0.0)
    inputs = inputs_for(ast_folder)
    lengths = []
    backbone = model.get_base_model().audio_spectrogram_transformer
    backbone.layers[0].register_forward_hook(lambda _, args, out: lengths.append(args[0].shape[1]))
    patches = whole.audio_spectrogram_transformer.embeddings.position_embeddings.shape[1] - 2
    with torch.no_grad():
        first, second = (model.train()(**inputs).logits for _ in "ab")
        torch.testing.assert_close(model.eval()(**inputs).logits, whole(**inputs).logits)
    assert lengths == [2 + round(patches / 2)] * 2 + [2 + patches]
    assert not torch.equal(first, second)  # other tokens each time


def test_only_ast_backbones_leave_tokens_out(wav2vec2_folder: Path) -> None:
    with pytest.raises(UserError, match="audio-spectrogram-transformer"):
        drop_tokens(build_classifier(str(wav2vec2_folder), LABELS), 0.5)


def test_plain_head_is_a_stock_checkpoint(backbone: Path, tmp_path: Path) -> None:
    is_ast = "spectrogram" in backbone.name
    model = build_classifier(str(backbone), LABELS, pooling="class_token" if is_ast else "mean")
    save_classifier(tmp_path / "m", model, load_feature_extractor(str(backbone)), {})
    stock, info = AutoModelForAudioClassification.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert stock.config.id2label[2] == "murmur"
    inputs = inputs_for(backbone)
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        torch.testing.assert_close(stock.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_incomplete_weights_are_refused(wav2vec2_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in wav2vec2_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if "attention.q_proj.weight" in name))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="weights are missing"):
        build_classifier(str(tmp_path), LABELS)


def test_unusable_backbones_are_explained(wav2vec2_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        build_classifier(str(tmp_path), LABELS)
    with pytest.raises(UserError, match="no such folder"):
        build_classifier(str(tmp_path / "absent"), LABELS)
    (tmp_path / "config.json").write_text('{"model_type": "wavlm"}')
    with pytest.raises(UserError, match="no gradient"):
        build_classifier(str(tmp_path), LABELS)
    with pytest.raises(UserError, match="lora_targets"):
        adapt(build_classifier(str(wav2vec2_folder), LABELS), "lora", lora_targets=["nothing"])
    with pytest.raises(UserError, match="class tokens"):
        build_classifier(str(wav2vec2_folder), LABELS, pooling="class_token")


def test_random_weights_only_when_asked(ast_folder: Path) -> None:
    one = build_classifier(str(ast_folder), LABELS, seed=1)
    two = build_classifier(str(ast_folder), LABELS, seed=2)
    drawn = build_classifier(str(ast_folder), LABELS, random_weights=True, seed=1)
    name = "audio_spectrogram_transformer.layers.0.attention.q_proj.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], drawn.state_dict()[name])
