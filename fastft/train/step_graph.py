"""A forward and backward pass that is recorded as a CUDA graph and replayed: one launch instead of some 700.

It pays at small micro-batches, where the host needs longer to launch the kernels than the GPU to run them.
`torch.cuda.make_graphed_callables` is not used: its gradients are overwritten when micro-batches accumulate (pytorch#181723).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WARM_UP_PASSES = 3  # as PyTorch's documentation of CUDA graphs does: libraries allocate their workspaces
Pass = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class GraphedPass:
    """Calls like the `run` that it records: images, targets and noise of one shape to (logits, loss), adding gradients.

    Inputs are copied to fixed tensors. Results lie in fixed tensors too: the next call overwrites them. Gradients must stay
    where they are between calls: `zero_grad(set_to_none=False)`.
    """

    def __init__(
        self,
        run: Pass,
        parameters: Iterable[nn.Parameter],
        capture: Callable[[Callable[[], None]], Callable[[], None]] | None = None,
    ) -> None:
        """capture: runs a function a few times and returns its replay; default `capture_graph`."""
        self._run, self._parameters = run, [p for p in parameters if p.requires_grad]
        self._capture = capture or capture_graph
        self._inputs: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __call__(self, images: Tensor, targets: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._inputs is None:
            self._record(images, targets, noise)
        assert self._inputs is not None
        for fixed, given in zip(self._inputs, (images, targets, noise), strict=True):
            if fixed is not None and given is not None:
                fixed.copy_(given)
        self._replay()
        return self._outputs

    def _record(self, images: Tensor, targets: Tensor, noise: Tensor | None) -> None:
        """Record before the first micro-batch of a step; the gradients of the passes that this needs are removed."""
        self._inputs = (images.clone(), targets.clone(), None if noise is None else noise.clone())
        self._replay = self._capture(self._pass)
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad.zero_()

    def _pass(self) -> None:
        assert self._inputs is not None
        self._outputs = self._run(*self._inputs)


def capture_graph(function: Callable[[], None]) -> Callable[[], None]:
    """Run a function on a side stream, then record it as a CUDA graph; returns the replay.

    The loader's threads go on using CUDA meanwhile, which only the error mode 'thread_local' allows.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_PASSES):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        function()
    return graph.replay
