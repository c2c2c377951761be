"""Our phonocardiogram backbone: a small Audio Spectrogram Transformer at 2 kHz."""

from transformers import ASTConfig, ASTFeatureExtractor

from hb_ssl.errors import UserError

PCG_SAMPLING_RATE = 2000  # Hz; heart sounds end near 1 kHz


def pcg_config(
    num_frames: int,
    num_mel_bins: int = 20,
    hidden_size: int = 192,
    num_layers: int = 6,
    num_heads: int = 4,
    time_stride: int = 5,
) -> ASTConfig:
    """Configuration of an ``ASTModel`` whose patches span all mel bins, so tokens follow time.

    Args:
        num_frames: window length in 10 ms frames; at 5 s and 2 kHz 498.
        num_mel_bins: also the patch size: a token sees ``10 * num_mel_bins`` ms.
        hidden_size: width D.
        num_layers: transformer layers.
        num_heads: attention heads; must divide ``hidden_size``.
        time_stride: frames between tokens; 5 gives 20 tokens a second.
    """
    if hidden_size % num_heads:
        raise UserError(f"hidden_size {hidden_size}: expected a multiple of {num_heads} heads")
    if num_frames < num_mel_bins:
        raise UserError(
            f"a window of {num_frames} frames is shorter than one patch ({num_mel_bins} frames); "
            "make the window longer"
        )
    return ASTConfig(
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=4 * hidden_size,
        patch_size=num_mel_bins,
        frequency_stride=num_mel_bins,
        time_stride=time_stride,
        max_length=num_frames,
        num_mel_bins=num_mel_bins,
        layer_norm_eps=1e-6,
    )


def pcg_feature_extractor(
    num_frames: int, num_mel_bins: int, sampling_rate: int, mean: float, std: float
) -> ASTFeatureExtractor:
    """The stock feature extractor that belongs to the backbone.

    Args:
        num_frames: window length in 10 ms frames.
        num_mel_bins: mel bins.
        sampling_rate: Hz.
        mean: mean log energy of the pre-training windows.
        std: their standard deviation (the extractor divides by twice this).
    """
    return ASTFeatureExtractor(
        sampling_rate=sampling_rate,
        num_mel_bins=num_mel_bins,
        max_length=num_frames,
        mean=mean,
        std=std,
    )
