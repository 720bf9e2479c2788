"""One ONNX file for any batch size, from `images` (B, 3, S, S) float32 to `logits` (B, K).

Its metadata holds the class names, the preprocessing, the run, fastft's version and the licence, each value as JSON.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from beton_tools import __version__
from beton_tools.base.errors import UserError
from fastft.evaluate.trained import Trained
from fastft.export.preprocessing import metadata

OPSET = 17  # the first with LayerNormalization
MISSING = "exporting to ONNX needs onnx and onnxruntime. Run: pip install onnx onnxruntime"


def write(trained: Trained, path: Path) -> None:
    try:
        import onnx  # imported early, because the exporter asks for it late, with a traceback
    except ImportError:
        raise UserError(MISSING) from None
    size = trained.recipe.model.image_size
    batch = {0: "batch"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the fixed shape and about the older exporter
        # the newer exporter (dynamo=True) needs another package and gives the same numbers
        torch.onnx.export(
            trained.model, (torch.zeros(2, 3, size, size),), str(path), dynamo=False, opset_version=OPSET,
            input_names=["images"], output_names=["logits"], dynamic_axes={"images": batch, "logits": batch},
        )  # fmt: skip
    made = onnx.load(path, load_external_data=False)  # models above 2 GiB do not fit into one file
    onnx.helper.set_model_props(made, {key: json.dumps(value) for key, value in metadata(trained).items()})
    made.producer_name, made.producer_version = "fastft", __version__
    onnx.save(made, path)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ImportError:
        raise UserError(MISSING) from None
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    return logits


def usage(trained: Trained, path: Path) -> str:
    return (
        "import json\n\n"
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{path.name}")\n'
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])\n'
        '(logits,) = session.run(["logits"], {"images": images})  # images: float32 (B, 3, S, S), see Images'
    )
