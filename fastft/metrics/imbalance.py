"""How unequal the classes of a training file are, and what follows from it."""

from collections.abc import Sequence

IMBALANCED = 10.0  # above this ratio of class sizes epochs and weights are compared by balanced accuracy


def imbalance(class_counts: Sequence[int]) -> float:
    """Images of the largest class over those of the smallest that has any."""
    present = [count for count in class_counts if count]
    return max(present) / min(present)


def describe_imbalance(class_counts: Sequence[int]) -> str:
    present = [count for count in class_counts if count]
    return (
        f"classes have {min(present):,} to {max(present):,} training images: balanced accuracy compares epochs and weights; "
        "--logit-adjustment of fastft eval, predict and export corrects for the class sizes"
    )
