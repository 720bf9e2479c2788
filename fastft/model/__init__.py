"""Image tower to classifier, and weights in and out, for fastft's CLIP tower and for timm's models."""

from fastft.model.arch import Arch
from fastft.model.classifier import Classifier, build_classifier, count_frozen_blocks, freeze
from fastft.model.flops import Flops, count_flops
from fastft.model.interface import ImageClassifier, ImageTower, TowerArch, arch_from_dict, load_arch
from fastft.model.timm_arch import TimmArch
from fastft.model.tower import Tower
from fastft.model.weights import interpolate_positions, load_tower_weights, read_visual_state

__all__ = [
    "Arch", "Classifier", "Flops", "ImageClassifier", "ImageTower", "TimmArch", "Tower", "TowerArch", "arch_from_dict",
    "build_classifier", "count_flops", "count_frozen_blocks", "freeze", "interpolate_positions", "load_arch",
    "load_tower_weights", "read_visual_state",
]  # fmt: skip
