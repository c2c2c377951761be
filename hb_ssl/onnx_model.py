"""Run an exported classifier with onnxruntime."""

from pathlib import Path

import numpy as np
import torch

from hb_ssl.errors import UserError

ONNX_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
OUTPUT_NAME = "logits"


class OnnxModel:
    """An exported network: model inputs ``[N, ...]`` to logits ``[N, C]``.

    Args:
        folder: made by ``hb-ssl export``.
        int8: take the weights rounded to 8 bits.

    Raises:
        UserError: onnxruntime or the file is missing.
    """

    def __init__(self, folder: str | Path, int8: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "runtime 'onnx' needs onnxruntime; install it with `pip install 'hb-ssl[onnx]'`"
            ) from error
        file = Path(folder) / (INT8_FILE if int8 else ONNX_FILE)
        if not file.is_file():
            raise UserError(
                f"{folder}: has no {file.name}; make it with `hb-ssl export RUN_OR_REPO OUT"
                f"{' --int8' if int8 else ''}` and give OUT"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings are about graph clean-ups
        # By itself it takes all cores, whatever OMP_NUM_THREADS or taskset allow.
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no public class
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(f"{file}: can't be loaded ({reason}); export it again") from error
        self._input_name = self._session.get_inputs()[0].name

    def __call__(self, features: np.ndarray) -> np.ndarray:
        logits = self._session.run([OUTPUT_NAME], {self._input_name: features})[0]
        return np.asarray(logits)
