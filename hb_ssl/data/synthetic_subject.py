"""Who is recorded: the parameters that a subject's simulated recordings share."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from hb_ssl.data.recording import RAW_LABELS
from hb_ssl.errors import UserError

# Murmur shapes of auscultation teaching and their bands in Hz: regurgitation jets are
# high-pitched, flow through a narrow mitral valve rumbles.
MURMUR_BANDS = {
    "ejection": (65, 230),
    "holosystolic": (90, 300),
    "late_systolic": (110, 330),
    "early_diastolic": (120, 360),
    "mid_diastolic": (35, 140),
}
_MURMUR_SHARES = (0.4, 0.25, 0.1, 0.15, 0.1)


@dataclass(frozen=True)
class Murmur:
    """A murmur: ``shape`` is a key of ``MURMUR_BANDS``, ``grade`` is 1 to 6 on Levine's scale."""

    shape: str
    grade: int
    low_hz: float
    high_hz: float

    @property
    def timing(self) -> str:
        return "diastolic" if self.shape.endswith("diastolic") else "systolic"


@dataclass(frozen=True)
class Tone:
    """One damped oscillation of a heart sound.

    Attributes:
        delay: seconds after the sound's onset.
        hz: frequency.
        decay: time constant in seconds.
        amplitude: relative peak.
        phase: radians.
    """

    delay: float
    hz: float
    decay: float
    amplitude: float
    phase: float


@dataclass(frozen=True)
class Subject:
    """What stays the same over the recordings of one subject.

    Attributes:
        label: one of ``RAW_LABELS`` but ``artifact``.
        heart_rate: mean in beats per minute.
        breathing_rate: breaths per second.
        rsa: relative RR change with breathing (respiratory sinus arrhythmia).
        slow_variability: relative RR change of the 0.1 Hz rhythm.
        jitter: standard deviation of the remaining relative RR change.
        systole_offset: seconds added to the mean S1-S2 interval at this heart rate.
        s1, s2, low_extra, click: damped oscillations of S1, S2, S3 and S4, and a systolic click.
        s2_ratio: amplitude of S2 relative to S1.
        extra_ratio: amplitude of the extra sounds relative to S1.
        split: A2-P2 interval in seconds at the end of expiration.
        split_inspiration: seconds that inspiration adds to it.
        chest_hz: first-order low-pass edge of the chest wall in Hz.
        phone_high_pass_hz: phone's edge in Hz; a phone that seals the skin badly loses more bass.
        murmur: or ``None``.
        extra_sounds: of ``s3``, ``s4`` and ``click``.
        premature_rate: chance that a beat is premature.
    """

    label: str
    heart_rate: float
    breathing_rate: float
    rsa: float
    slow_variability: float
    jitter: float
    systole_offset: float
    s1: tuple[Tone, ...]
    s2: tuple[Tone, ...]
    low_extra: tuple[Tone, ...]
    click: tuple[Tone, ...]
    s2_ratio: float
    extra_ratio: float
    split: float
    split_inspiration: float
    chest_hz: float
    phone_high_pass_hz: float
    murmur: Murmur | None = None
    extra_sounds: tuple[str, ...] = ()
    premature_rate: float = 0.0


def draw_subject(label: str, rng: np.random.Generator) -> Subject:
    """Draws a subject: one in four is a child, with a heart rate up to 140 per minute.

    Labels differ in their finding only, not in rate or timbre.

    Args:
        label: ``normal``, ``murmur``, ``extrahls`` or ``extrastole``.
        rng: source of randomness.

    Raises:
        UserError: the label is unknown or is ``artifact``, which has no heart.
    """
    if label not in RAW_LABELS or label == "artifact":
        raise UserError(
            f"label '{label}' has no heartbeat to draw; expected one of "
            f"{', '.join(name for name in RAW_LABELS if name != 'artifact')}"
        )
    is_child, leaky_phone = rng.random() < 0.25, rng.random() < 0.65
    tilt, pitch = rng.uniform(-0.1, 0.8), rng.uniform(0.85, 1.2)
    subject = Subject(
        label=label,
        heart_rate=float(
            rng.uniform(85, 140) if is_child else np.clip(rng.normal(74, 14), 50, 110)
        ),
        breathing_rate=rng.uniform(0.18, 0.38),
        rsa=rng.uniform(0.01, 0.06),
        slow_variability=rng.uniform(0.005, 0.03),
        jitter=rng.uniform(0.004, 0.015),
        systole_offset=float(np.clip(rng.normal(0, 0.015), -0.03, 0.03)),
        s1=_draw_tones((36, 58, 85, 125, 200), pitch, tilt, 0.045, rng),
        s2=_draw_tones((45, 72, 110, 170, 270), pitch, 0.8 * tilt, 0.012, rng),
        low_extra=_draw_tones((34, 52, 90, 150), pitch, tilt, 0.020, rng),
        click=_draw_tones((90, 140, 220), pitch, 0.5 * tilt, 0.003, rng),
        s2_ratio=float(np.clip(rng.lognormal(-0.25, 0.4), 0.3, 2.0)),
        extra_ratio=rng.uniform(0.35, 0.8),
        split=rng.uniform(0.0, 0.018),
        split_inspiration=rng.uniform(0.01, 0.03),
        chest_hz=rng.uniform(300, 900),
        phone_high_pass_hz=rng.uniform(100, 200) if leaky_phone else rng.uniform(30, 50),
    )
    if label == "murmur":
        return dataclasses.replace(subject, murmur=_draw_murmur(rng))
    if label == "extrahls":
        kinds: list[tuple[str, ...]] = [("s3",), ("s4",), ("click",), ("s3", "s4")]
        chosen = kinds[rng.choice(len(kinds), p=(0.35, 0.25, 0.25, 0.15))]
        return dataclasses.replace(subject, extra_sounds=chosen)
    if label == "extrastole":
        return dataclasses.replace(subject, premature_rate=rng.uniform(0.15, 0.4))
    return subject


def _draw_tones(
    center_hz: tuple[float, ...],
    pitch: float,
    tilt: float,
    spread: float,
    rng: np.random.Generator,
) -> tuple[Tone, ...]:
    """Tones near ``center_hz`` within ``spread`` seconds, weaker by ``(f / 50 Hz) ** -tilt``.

    They last one to two periods, so that their sum has the broad spectrum of a real heart sound.
    The lowest one starts at 0 and so marks the onset.
    """
    tones = []
    for i, center in enumerate(center_hz):
        hz = center * pitch * rng.uniform(0.85, 1.18)
        tones.append(
            Tone(
                delay=0.0 if i == 0 else rng.uniform(0, spread),
                hz=hz,
                decay=rng.uniform(0.6, 1.2) / hz,
                amplitude=rng.uniform(0.6, 1) * (hz / 50) ** -tilt,
                phase=rng.uniform(0, 2 * np.pi),
            )
        )
    return tuple(tones)


def _draw_murmur(rng: np.random.Generator) -> Murmur:
    shape = str(rng.choice(list(MURMUR_BANDS), p=_MURMUR_SHARES))
    grade = int(rng.choice([1, 2, 3, 4, 5], p=[0.04, 0.16, 0.35, 0.3, 0.15]))
    low, high = MURMUR_BANDS[shape]
    scale = rng.uniform(0.8, 1.25)
    return Murmur(shape, grade, low * scale, high * scale)
