"""Show where a model's predictions come from, for several images in one picture.

fastft train photos --data.train=photos
python examples/votes.py runs/photos holiday/*.jpg --out votes.png

Red patches vote for the most probable class, and blue ones for the second. With fastft's head (LayerNorm on every patch token,
mean, linear) this is no approximation: a class's logit is the mean of one number per patch. `fastft predict --votes DIR`
writes a picture and a table for each image.
"""

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fastft.evaluate.predictor import Predictor
from fastft.evaluate.votes import draw_votes

COLUMNS, SIDE, GAP, TEXT = 5, 150, 8, 34  # pixels, but COLUMNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("votes.png"))
    args = parser.parse_args()

    cells = []
    for prediction in Predictor(args.run, votes=True).predict(args.images):
        votes = prediction.votes
        if votes is None:  # the image cannot be read
            print(prediction)
            continue
        first, second = votes.ranked[:2]
        assert abs(votes.by_patch_KHW.mean((1, 2)) - votes.logits_K).max() < 3e-6
        with Image.open(prediction.path) as image:
            panels = draw_votes(image.convert("RGB"), votes.against(first, second), votes.recipe)
        cells.append((panels, f"{votes.classes[first]} {prediction.probabilities[0]:.0%}\nnot {votes.classes[second]}"))
    sheet(cells).save(args.out)
    print(f"{args.out}: {len(cells)} images")


def sheet(cells: list[tuple[tuple[Image.Image, Image.Image], str]]) -> Image.Image:
    """Put pairs of pictures and their captions into a grid: an image above its votes."""
    height = 2 * SIDE + GAP + TEXT
    rows = -(-len(cells) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    drawn, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for k, (panels, caption) in enumerate(cells):
        x, y = GAP + k % COLUMNS * (SIDE + GAP), GAP + k // COLUMNS * (height + GAP)
        for j, panel in enumerate(panels):
            page.paste(panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y + j * (SIDE + GAP // 2)))
        drawn.multiline_text((x, y + 2 * SIDE + GAP // 2 + 2), caption, "black", font)
    return page


if __name__ == "__main__":
    main()
