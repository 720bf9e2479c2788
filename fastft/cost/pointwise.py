"""Memory traffic of a training step outside matrix products and attention, as a formula.

It equals the count of `fastft.cost.traffic.step_traffic`, which traces a step operation by operation: for that PyTorch imports
its compiler, which takes longer than all else that `fastft explain` does. A test holds the two together.

Terms are bytes per element of a layer's tokens, or per image. An element of the residual stream has `s` bytes: 4 under autocast,
2 with half-precision weights. What matrix products read and write has 2.
"""

from dataclasses import dataclass

from fastft.cost.work import count_parameters
from fastft.model import Arch, count_frozen_blocks
from fastft.model.recipe_model import recipe_arch
from fastft.recipe import Recipe

HALF = 2
CAST = 4 + HALF  # reads or writes fp32, the other one half precision
HEAD_BYTES = 32  # per image and class: casts, softmax and loss, forward and backward
# a position bias makes attention unfused: (forward, backward) bytes per attention score and per element
SCORE_BYTES, UNFUSED_BYTES = (22, 16), (68, 60)
IMAGES = 256  # of a step, where the recipe leaves the micro-batch open


def count_images(recipe: Recipe) -> int:
    """Images of a forward pass: the recipe's micro-batch, or IMAGES where it is 'as many as fit'."""
    return recipe.train.micro_batch or IMAGES


def pointwise_bytes(recipe: Recipe, path: str) -> float:
    """Bytes per training image of a recipe of one phase, in the 'autocast' or the 'half' path."""
    arch = recipe_arch(recipe)
    assert isinstance(arch, Arch), "a formula for fastft's own tower; timm's models are traced"
    count = _Count(recipe, arch, path)
    per_image = count.blocks() + count.below_blocks() + count.above_blocks()
    return per_image + count.weights() / count_images(recipe)


@dataclass(frozen=True)
class _Count:
    recipe: Recipe
    arch: Arch
    path: str

    @property
    def s(self) -> int:
        """Bytes of an element of the residual stream."""
        return 4 if self.path == "autocast" else HALF

    @property
    def cast(self) -> int:
        """Bytes of a cast between the residual stream and half precision."""
        return CAST if self.path == "autocast" else 0

    @property
    def element(self) -> int:
        """Elements of a layer's tokens per image, after patch dropout."""
        return (
            1 + max(1, round(self.arch.grid**2 * (1 - self.recipe.largest_patch_dropout)))
        ) * self.arch.width

    @property
    def frozen(self) -> int:
        return count_frozen_blocks(self.arch.layers, self.recipe.model.trainable_layers)

    def blocks(self) -> float:
        """Bytes per image of all blocks; frozen ones have no backward pass."""
        forward, backward = self._block()
        trained = self.arch.layers - self.frozen
        total = self.frozen * forward
        if (
            self.path == "autocast"
        ):  # trained, LayerNorm's gain and shift are applied to normalised tokens in half precision
            forward += 2 * 2 * HALF * self.element
        total += trained * (forward + backward)
        if self.frozen and trained:  # the input of the lowest trained block needs no gradient
            total -= (2 + 2 * HALF if self.path == "autocast" else 4 * self.s) * self.element
        if self.recipe.model.drop_path > 0:
            total -= sum(self._drop_path()[: 1 + (self.frozen == 0)])  # the first block's rate is 0
        if self.recipe.train.grad_checkpointing:  # once more, without the last addition
            total += trained * (forward - (2 * self.s + HALF) * self.element)
        return total

    def _block(self) -> tuple[float, float]:
        """Bytes per image of a block's forward and backward pass."""
        s, cast, ratio, model = self.s, self.cast, self.arch.mlp_width / self.arch.width, self.recipe.model
        branch = self._branch
        # LayerNorm, the cast of its output, the residual sum; activation
        forward = 2 * (2 * s + cast + 2 * s + branch) + 2 * HALF * ratio
        # LayerNorm and the sum of both gradients, the cast of the branch's gradient; activation; bias sums
        backward = 2 * (3 * HALF + 2 * s + HALF + cast) + 3 * HALF * ratio + HALF * (5 + ratio)
        if self._scaled:
            forward += 2 * (HALF + branch)
            backward += 2 * (5 * branch + HALF)  # gradients of the input and, summed, of the factors
        forward, backward = forward * self.element, backward * self.element
        if model.drop_path > 0:
            forward, backward = (a + b for a, b in zip((forward, backward), self._drop_path(), strict=True))
        if model.rel_pos_bias:
            scores = self.arch.heads * self.arch.tokens**2
            forward += SCORE_BYTES[0] * scores + UNFUSED_BYTES[0] * self.element
            backward += SCORE_BYTES[1] * scores + UNFUSED_BYTES[1] * self.element
        return forward, backward

    @property
    def _scaled(self) -> bool:
        return self.recipe.model.layer_scale is not None or self.arch.layer_scale

    @property
    def _branch(self) -> int:
        """Bytes of an element of a branch's output: LayerScale's fp32 factors make it fp32."""
        return self.s if self._scaled else HALF

    def _drop_path(self) -> tuple[float, float]:
        """Bytes per image of a block's products with the masks, forward and backward."""
        product = 2.0 * 2 * self._branch * self.element
        return product, product

    def below_blocks(self) -> float:
        """Bytes per image of patch embedding, class token, positions, patch dropout and ln_pre."""
        s, width, patches, element = self.s, self.arch.width, self.arch.grid**2, self.element
        whole = (1 + patches) * width  # before patch dropout
        total = 2.0 * HALF * patches * 3 * self.arch.patch_size**2 + 4 * HALF * whole
        total += element * (self.cast + 2 * s * self.arch.ln_pre)
        dropped = self.recipe.largest_patch_dropout > 0
        if dropped:
            total += HALF * (whole + 3 * element)
        if self.frozen:
            return total
        total += element * (3 * s * self.arch.ln_pre + self.cast) + HALF * whole
        if dropped:
            total += HALF * (9 * whole + 2 * element)
        if not self.recipe.model.freeze_conv1:
            total += 2 * HALF * patches * width
        return total

    def above_blocks(self) -> float:
        """Bytes per image of fc_norm, the mean over patches, and head."""
        # LayerNorm and mean, forward and backward
        total = (2 + 1 + 1 + 2) * self.s
        if self.frozen < self.arch.layers:  # the gradient of the tokens, with zeros for the class token
            total += (1 + 2) * self.s
        return total * self.element + HEAD_BYTES * self.recipe.data.num_classes

    def weights(self) -> float:
        """Bytes per micro-batch: casts of weights and gradients, or the refresh of the half-precision copy."""
        width, layers = self.arch.width, self.arch.layers
        block = width * (4 * width + 2 * self.arch.mlp_width)
        whole = count_parameters(self.arch, self.recipe.data.num_classes)
        trained = whole - self.frozen * block
        if self.path == "half":
            return CAST * 2 * trained
        joined = 2 * HALF * 3 * width**2 * (layers - self.frozen)  # the input projection's three gradients
        again = (layers - self.frozen) * block * self.recipe.train.grad_checkpointing
        return CAST * (whole + trained + again) + joined
