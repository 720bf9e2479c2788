"""One `torch.export` file for any batch size: `images` (B, 3, S, S) uint8 to probabilities (B, K), without fastft.

Normalisation, temperature and softmax (multi-label: sigmoid) are part of the program.
"""

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastft.evaluate.trained import Trained
from fastft.export.preprocessing import metadata

METADATA = "metadata.json"  # stored beside the program in the file


class Probabilities(nn.Module):
    """Images (B, 3, S, S) uint8, resized and cropped, to probabilities (B, K)."""

    def __init__(self, trained: Trained):
        super().__init__()
        self.model = trained.model
        self.multi_label = trained.recipe.data.multi_label
        self.temperature = 1.0 if trained.has_scaled_head else trained.temperature or 1.0
        colours = trained.recipe.augment
        self.mean, self.std = (
            nn.Buffer(torch.tensor(values).view(1, 3, 1, 1)) for values in (colours.mean, colours.std)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits_BK = self.model((images.float() / 255 - self.mean) / self.std)
        return logits_BK.sigmoid() if self.multi_label else (logits_BK / self.temperature).softmax(1)


def write(trained: Trained, path: Path) -> None:
    size = trained.recipe.model.image_size
    example, batch = torch.zeros(2, 3, size, size, dtype=torch.uint8), torch.export.Dim("batch", min=1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own deprecations
        program = torch.export.export(Probabilities(trained).eval(), (example,), dynamic_shapes=({0: batch},))
        # saved to memory first: torch opens paths by itself, and a full disk would be a RuntimeError
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata(trained))})
    path.write_bytes(file.getbuffer())


def load(path: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(path).module()


def usage(trained: Trained, path: Path) -> str:
    return (
        "import json\n\n"
        "import torch\n\n"
        f'files = {{"{METADATA}": ""}}\n'
        f'model = torch.export.load("{path.name}", extra_files=files).module()\n'
        f'classes = json.loads(files["{METADATA}"])["classes"]\n'
        "probabilities = model(torch.from_numpy(images))  # images: uint8 (B, 3, S, S), see Images"
    )
