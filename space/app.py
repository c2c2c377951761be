"""The Gradio Space: classify heart sounds in the browser.

    python space/app.py                                  the bundled classifier
    HB_SSL_MODEL=runs/quickstart python space/app.py     a run folder, or a Hub repo ORG/NAME

Logic, texts and pictures live in the package (`hb_ssl.space_page`, `hb_ssl.space_figures`); here
they are wired to components. Recordings are not kept: see `build_app` and `launch_app`.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, TypeVar

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before the import: it sends a message

import gradio as gr
import numpy as np
import soundfile as sf
from starlette.middleware import Middleware

from hb_ssl.batch import prediction_row
from hb_ssl.cli import run_command
from hb_ssl.data.synthetic import simulate_recording
from hb_ssl.errors import UserError
from hb_ssl.explain import occlusion_map
from hb_ssl.inference import HeartSoundClassifier, Prediction, locate_classifier
from hb_ssl.space_figures import occlusion_figure
from hb_ssl.space_limits import REQUESTS_PER_MINUTE, LimitRequests
from hb_ssl.space_page import (
    SYNTHETIC_WARNING,
    answer_row,
    batch_html,
    figure_html,
    model_card,
    model_facts,
    occlusion_caption,
    pictures_html,
    problem_html,
    read_recording,
    verdict_html,
)

HERE = Path(__file__).parent
EXAMPLES = (  # label, device, seed of the simulator
    ("normal", "stethoscope", 1),
    ("murmur", "stethoscope", 4),
    ("extrahls", "stethoscope", 3),
    ("artifact", "phone", 2),
)
EXAMPLE_SECONDS, EXAMPLE_RATE = 10.0, 4000
MAX_FILE_SIZE = "100mb"
MAX_BATCH_FILES = 50
MAX_EXPLAINED_SECONDS = 60.0  # the occlusion map costs several classifications
MAX_WAITING = 100  # requests; later ones are told to come back
DELETE_AFTER_SECONDS = 600
BUSY_TOGETHER = max(os.cpu_count() or 1, 2)  # requests worked on at once

Answer = TypeVar("Answer")
log = logging.getLogger("hb_ssl.space")


def explain_errors(handler: Callable[..., Answer]) -> Callable[..., Answer]:
    """Turns errors of an API call into one friendly line; a bug is logged and never shown."""

    @wraps(handler)
    def wrapped(*arguments: Any) -> Answer:
        try:
            return handler(*arguments)
        except UserError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error
        except gr.Error:
            raise
        except Exception as error:
            log.exception("the Space failed")
            raise gr.Error(
                "Something went wrong here, not with your recording. Please try again.",
                print_exception=False,
            ) from error

    return wrapped


def build_app(classifier: HeartSoundClassifier, card: str | None, examples: Path) -> gr.Blocks:
    """The page.

    Args:
        classifier: what answers.
        card: the model's card as Markdown, or ``None``.
        examples: folder for the simulated example recordings.
    """
    labels = classifier.labels

    @explain_errors
    def classify(recording: str | None) -> dict[str, Any]:
        prediction = classifier.predict_one(read_recording(recording))
        return answer_row(Path(str(recording)).name, prediction)

    @explain_errors
    def analyse(path: str | None) -> tuple[str, str, str | None]:
        try:
            waveform, rate = read_recording(path)
        except UserError as error:
            return problem_html(str(error)), "", None
        prediction = classifier.predict_one((waveform, rate))
        verdict = verdict_html(Path(str(path)).name, prediction, classifier.preprocessing)
        return verdict, pictures_html(waveform, rate, prediction), path

    @explain_errors
    def explain(path: str | None) -> str:
        if path is None:
            return ""  # said by `analyse`
        try:
            waveform, rate = read_recording(path)
        except UserError:
            return ""  # deleted meanwhile
        title = "Which seconds drove the verdict"
        if len(waveform) > MAX_EXPLAINED_SECONDS * rate:
            text = f"Only made for recordings up to {MAX_EXPLAINED_SECONDS:.0f} seconds."
            return f'<section class="hb-card"><h3>{title}</h3><p>{text}</p></section>'
        prediction = classifier.predict_one((waveform, rate))
        label = prediction.label  # also when the answer is 'inconclusive': what came closest
        seconds, importance = occlusion_map(classifier, waveform, rate, label)
        svg = occlusion_figure(waveform, rate, seconds, importance)
        caption = occlusion_caption(seconds, importance, label)
        return f'<section class="hb-card">{figure_html(title, svg, caption)}</section>'

    @explain_errors
    def classify_files(paths: list[str] | None, progress: gr.Progress) -> str:
        if not paths:
            return problem_html("There are no recordings yet: choose some files first.")
        if len(paths) > MAX_BATCH_FILES:
            return problem_html(
                f"{len(paths)} files: at most {MAX_BATCH_FILES} are taken at once. For more, "
                "install the package and use `hb-ssl predict`."
            )
        rows = []
        answer: Prediction | UserError
        for path in progress.tqdm(paths, desc="Classifying"):
            name = Path(path).name
            try:
                answer = classifier.predict_one(read_recording(path))
            except UserError as error:
                answer = error
            rows.append(prediction_row(name, answer, labels))
        return batch_html(rows, labels)

    def batch(paths: list[str] | None, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        return classify_files(paths, progress)

    # Uploads are deleted after ten minutes, and all of them when the server stops.
    with gr.Blocks(
        title="Heart sounds",
        analytics_enabled=False,
        delete_cache=(DELETE_AFTER_SECONDS // 2, DELETE_AFTER_SECONDS),
    ) as app:
        gr.HTML(
            "<h1>Heart sounds</h1><p>Record or upload a heart sound; the model says what it sounds "
            "like, and how sure it is.</p>"
        )
        warning = f"<br>{SYNTHETIC_WARNING}" if classifier.preprocessing.get("synthetic") else ""
        gr.HTML(
            "<div class='hb-banner' role='note'><strong>Research and screening aid, not a "
            f"diagnosis.</strong>{warning}</div>",
            elem_id="banner",
        )
        with gr.Tabs(overflow_behavior="wrap"):
            with gr.Tab("One recording"):
                audio = gr.Audio(
                    type="filepath",
                    sources=["upload", "microphone"],
                    label="Heart sound (WAV, FLAC, MP3, Ogg or AIFF)",
                    elem_id="recording",
                    editable=False,
                    buttons=["download"],
                )
                button = gr.Button("Classify", variant="primary", elem_id="classify")
                gr.HTML("<p class='hb-small'>Or try a simulated recording (no real heart):</p>")
                with gr.Row():
                    example_buttons = [
                        gr.Button(f"Synthetic {label} ({device})", size="sm", min_width=130)
                        for label, device, _ in EXAMPLES
                    ]
                verdict = gr.HTML(elem_id="verdict")
                pictures = gr.HTML(elem_id="pictures")
                explanation = gr.HTML(elem_id="explanation")
            with gr.Tab("Several recordings"):
                files = gr.File(
                    file_count="multiple",
                    file_types=["audio"],
                    label=f"Recordings, up to {MAX_BATCH_FILES}",
                    elem_id="recordings",
                )
                batch_button = gr.Button("Classify all", variant="primary", elem_id="classify-all")
                table = gr.HTML(elem_id="table")
            with gr.Tab("How it works and what it can't do"):
                gr.Markdown((HERE / "about.md").read_text(encoding="utf-8"))
                gr.Markdown("## The model\n\n" + model_facts(classifier))
                gr.Markdown(
                    card or "This model came without a card, so no measured scores are shown here."
                )
        analysed = gr.State(None)  # the recording that the verdict is of
        answer = gr.JSON(visible=False)
        api = gr.Button(visible=False)

        together = {"concurrency_limit": BUSY_TOGETHER, "concurrency_id": "model"}
        hidden = {"api_visibility": "undocumented", **together}
        page = [verdict, pictures, analysed]
        running = []

        def answer_on(start: Callable[..., Any], first: str, then: str) -> None:
            answered = start(analyse, audio, page, **hidden, api_name=first)
            explained = answered.success(explain, analysed, explanation, **hidden, api_name=then)
            running.extend([answered, explained])

        for example, file in zip(example_buttons, make_examples(examples), strict=True):
            chosen = example.click(
                lambda file=file: (str(file), "", "", ""),
                None,
                [audio, verdict, pictures, explanation],
                queue=False,
                api_visibility="private",
            )
            answer_on(chosen.then, f"example_{file.stem}", f"explain_{file.stem}")
        answer_on(button.click, "analyse", "explain")
        # A new recording must not stand beside the old answer, nor beside one still on its way.
        gr.on(
            [audio.upload, audio.stop_recording, audio.clear],
            lambda: ("", "", ""),
            None,
            [verdict, pictures, explanation],
            queue=False,
            cancels=running,
            api_visibility="private",
        )
        batch_button.click(batch, files, table, **hidden, api_name="batch")
        api.click(
            classify,
            audio,
            answer,
            **together,
            api_name="classify",
            api_description="Classifies one recording: decision (a class, or 'inconclusive'), "
            "probabilities, heart rate in beats per minute and signal notes with advice.",
        )
    return app


def make_examples(folder: Path) -> list[Path]:
    """Simulated recordings, the same at every start."""
    paths = []
    for label, device, seed in EXAMPLES:
        waveform, _ = simulate_recording(
            label, EXAMPLE_SECONDS, EXAMPLE_RATE, np.random.default_rng(seed), device
        )
        path = folder / f"synthetic_{label}.wav"
        sf.write(path, waveform, EXAMPLE_RATE, subtype="PCM_16")
        paths.append(path)
    return paths


def launch_app(
    app: gr.Blocks, requests_per_minute: int = REQUESTS_PER_MINUTE, **options: Any
) -> tuple[Any, str, str]:
    """Starts the server; nothing of what users send is recorded or flagged.

    Fonts are the system's own, so a visit contacts no other host. One visitor may send so much in a
    minute, and no more (see ``hb_ssl.space_limits``).
    """
    limits = Middleware(LimitRequests, requests_per_minute=requests_per_minute)
    blue = gr.themes.colors.blue
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue=blue, **fonts).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
    )
    return app.queue(max_size=MAX_WAITING).launch(
        max_file_size=MAX_FILE_SIZE,
        show_error=False,
        run_history=False,
        app_kwargs={"middleware": [limits]},
        ssr_mode=False,
        footer_links=["api"],
        theme=theme,
        css_paths=HERE / "style.css",
        js=(HERE / "page.js").read_text(encoding="utf-8"),
        **options,
    )


def main() -> None:
    model = os.environ.get("HB_SSL_MODEL") or None
    folder = locate_classifier(model)
    classifier = HeartSoundClassifier.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as examples:
        launch_app(build_app(classifier, model_card(folder), Path(examples)))


if __name__ == "__main__":
    sys.exit(run_command(main))
