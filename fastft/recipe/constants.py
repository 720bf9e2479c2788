"""Values that the recipe schema and the code that carries a recipe out both need."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI CLIP preprocessing, per channel of inputs in 0..1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

IMAGENET_TRAIN_SIZE = 1_281_167  # ILSVRC2012 training images

CROPS = ("rrc", "src")  # random resized crop; simple resize crop (DeiT III)
INTERPOLATIONS = ("bicubic", "bilinear")
# after normalisation: 0; one N(0, 1) colour per box; N(0, 1) per pixel
ERASE_MODES = ("const", "rand", "pixel")
MAX_ERASE = 4  # erased boxes per image; the size of a plan's field

RANDOM, BLOCKS = ORDERS = ("random", "blocks")  # of the samples of an epoch
NONE, SQRT, BALANCED = REBALANCING = ("none", "sqrt", "balanced")  # of classes: per image 1, 1 / sqrt(n) or 1 / n
# three blocks are in memory at a time; one of ImageNet at 500 px has 9,000 images, of 128 pages
BLOCK_MIB = 1024

TIMM = "timm/"  # start of a `model.arch` that names a model of timm

# Short names of the options that are set most often, as timm and lightly-train call them: `--batch-size 64` on the command
# line, `batch_size=64` in Python. A command's own argument of the same name, such as `fastft sweep --out`, comes first.
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

# Names of other libraries (timm, Ultralytics, transformers, Lightning) for our options: what an unknown name probably meant.
# An empty name: we have no such option, and a similar one is not suggested.
OTHER_NAMES = {
    name: option
    for option, names in {
        "data.train": "data_dir data_path dataset train_dir train_data",
        "data.val": "val_dir validation_dir val_split val_path",
        "data.workers": "j num_workers dataloader_num_workers",
        "model.arch": "backbone model_name_or_path",
        "model.weights": "pretrained initial_checkpoint checkpoint",
        "model.image_size": "img_size imgsz input_size resolution size",
        "model.trainable_layers": "freeze",
        "augment.policy": "aa auto_augment",
        "augment.hflip": "fliplr",
        "augment.vflip": "flipud",
        "augment.erase_prob": "reprob erasing",
        "augment.erase_mode": "remode",
        "augment.erase_count": "recount",
        "optim.batch_size": "b bs batch per_device_train_batch_size train_batch_size",
        "optim.lr": "learning_rate base_lr lr_base lr0",
        "optim.weight_decay": "wd",
        "optim.clip_grad": "max_grad_norm gradient_clip_val",
        "optim.label_smoothing": "smoothing label_smoothing_factor",
        "schedule.epochs": "num_train_epochs num_epochs max_epochs",
        "schedule.min_lr": "lrf",
        "schedule.warmup": "warmup_ratio",
        "ema.decay": "model_ema_decay",
        "train.run_dir": "o output output_dir project save_dir experiment",
        "train.amp": "precision fp16 bf16 half",
        "train.micro_batch": "grad_accum_steps gradient_accumulation_steps accumulate",
        "train.stop_when": "patience",
        "train.tracker": "log_wandb report_to",
        "train.eval_crop_pct": "crop_pct",
        "": "opt optimizer sched lr_scheduler_type resume momentum",
    }.items()
    for name in names.split()
}

# choices of the command line and of the code behind it, which takes seconds to import
DEVICES = ("auto", "cuda", "cpu")  # auto: the GPU if there is one
EXPORT_FORMATS = ("timm", "open_clip", "safetensors", "onnx", "torch")
AUTO, RAW, EMA, BEST, LAST, PROBE = WEIGHT_CHOICES = ("auto", "raw", "ema", "best", "last", "probe")
GREEDY, UNIFORM = SOUPS = ("greedy", "uniform")
PEERS = ("ffcv", "timm", "torchvision", "simplejpeg", "dali", "webdataset", "litdata", "spdl")
