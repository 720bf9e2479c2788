"""Values that both the recipe schema and the code that carries out a recipe need."""

from typing import Final

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP preprocessing, per channel of inputs in 0..1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGENET_TRAIN_SIZE = 1_281_167  # ILSVRC2012 training images

CROPS = ("rrc", "src")  # random resized crop, simple resize crop (DeiT III)
BICUBIC, BILINEAR = INTERPOLATIONS = ("bicubic", "bilinear")
SHORTEST, SQUASH = RESIZES = ("shortest", "squash")  # before evaluation's centre crop: keep the shape, or make a square
# after normalisation: 0, one N(0, 1) colour per box, or N(0, 1) per pixel
ERASE_MODES = ("const", "rand", "pixel")
IMAGE_SIZE, EPOCHS, STOP_EPOCH, BUDGET = "model.image_size", "schedule.epochs", "schedule.stop_epoch", "schedule.budget"
EVAL_IMAGE_SIZE = "train.eval_image_size"
BY_BUDGET = (IMAGE_SIZE, EPOCHS, STOP_EPOCH)  # what `schedule.budget` decides, unless they are set where it is set
# Shorter runs have ended below their linear probe (docs/measurements/photos.md, A budget in time)
SHORTEST_GAINING_STEPS = 30
FEW_IMAGES = 20_000  # BiT's limit between its smallest and its middle setting
PROBED_SIZES = (56, 84, 112, 168, 224, 336)  # pixels, before they are rounded to whole patches
MAX_ERASE = 4  # erased boxes per image, which is the size of a plan's field

RANDOM, BLOCKS = ORDERS = ("random", "blocks")  # order of the samples in an epoch
NONE, SQRT, BALANCED = REBALANCING = ("none", "sqrt", "balanced")  # per image in a class: 1, 1 / sqrt(n) or 1 / n
# three blocks are in memory at a time. An ImageNet block at 500 px has 9,000 images, with 128 pages
BLOCK_MIB = 1024

TIMM = "timm/"  # start of a `model.arch` that names a timm model

# Short names for the options that are set most often, as in timm and lightly-train: `--batch-size 64` on the command
# line, `batch_size=64` in Python. If a command has an argument with the same name, such as `fastft sweep --out`, that
# comes first.
SHORT_NAMES = {
    "data": "data.train",
    "val_data": "data.val",
    "workers": "data.workers",
    "model": "model.arch",
    "weights": "model.weights",
    "image_size": "model.image_size",
    "batch_size": "optim.batch_size",
    "lr": "optim.lr",
    "epochs": "schedule.epochs",
    "out": "train.run_dir",
    "seed": "train.seed",
    "device": "train.device",
}

# parts of a training step, in their order. start: waiting for a process's first batch, while kernels compile
STEP_PARTS = ("start", "wait", "forward", "backward", "optimizer", "ema")

# choices for the command line and the code behind it, which takes seconds to import
DEVICES = ("auto", "cuda", "cpu")  # auto: the GPU if there is one
EXPORT_FORMATS = ("timm", "open_clip", "safetensors", "onnx", "torch")
AUTO: Final = "auto"  # a value that follows from the images, or from what a run chose
RAW: Final = "raw"
EMA: Final = "ema"
BEST: Final = "best"
LAST: Final = "last"
PROBE: Final = "probe"
FROM_WEIGHTS: Final = "weights"  # value of `model.head_init`
WEIGHT_CHOICES = (AUTO, RAW, EMA, BEST, LAST, PROBE)
GREEDY, UNIFORM = SOUPS = ("greedy", "uniform")
