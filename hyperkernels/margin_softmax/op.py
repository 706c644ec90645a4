"""The class-statistics op: schema, shapes, autograd, and which backend runs it.

Each operation exists twice in the dispatcher, so that a forced backend holds in the backward too: `class_statistics`
has the C++ kernels, `class_statistics_triton` the Triton kernels. The plan (how many classes a tile holds, how many
tiles of cosines are kept for the backward) is made here from the sizes alone, so that shapes are known to the compiler
and results do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .. import _backend
from .._fake import register_fake
from . import reference
from .negatives import Negatives

if TYPE_CHECKING:
    from .chunked import Receiver

LIBRARY = torch.library.Library("hyperkernels", "FRAGMENT")

# What forward and backward share: the problem, then its constants. With `classes` [R] int64, increasing, these classes
# alone exist: C is R everywhere but in the weight, whose rows are read where they are, the target is a position among
# them and dweight holds their rows alone, [R*K, D].
_PROBLEM = (
    "Tensor x, Tensor weight, Tensor target, Tensor scale, Tensor? class_scale, Tensor? bias, Tensor? transform, "
    "Tensor? classes, "
)
_CONSTANTS = (
    "str negatives, int sub_centers, bool normalize_x, bool normalize_weight, float eps, int ignore_index, "
    "int absent_index, SymInt block, SymInt kept_blocks"
)
# The nine statistics, target_cos in float64; then what only the backward reads: top and log_sum [N], with
# neg_lse = scale * top + log_sum;
# scale_slope [N], the derivative of neg_lse to scale; w_norm [C*K]; block_lse [N, tiles], the log-sum-exp of each tile,
# where skip_budget > 0; kept, kept_blocks tiles [N, block*K] of cosines. skip_report is written by the backward.
_FORWARD = (
    f"({_PROBLEM}{_CONSTANTS}, float skip_budget, Tensor? skip_report) -> (Tensor neg_lse, Tensor target_cos, "
    "Tensor x_norm, Tensor hardest_cos, Tensor hardest_class, Tensor neg_cos_sum, Tensor target_center, "
    "Tensor hard_cos_sum, Tensor hard_count, Tensor top, Tensor log_sum, Tensor scale_slope, Tensor w_norm, "
    "Tensor block_lse, Tensor kept)"
)
_BACKWARD = (
    "(Tensor d_neg_lse, Tensor d_target_cos, Tensor d_x_norm, Tensor d_neg_cos_sum, "
    f"{_PROBLEM}Tensor x_norm, Tensor target_center, Tensor top, Tensor log_sum, Tensor w_norm, Tensor kept, "
    f"Tensor skip, {_CONSTANTS}, bool need_x, bool need_weight, bool need_class_scale, bool need_bias) "
    "-> (Tensor dx, Tensor dweight, Tensor dclass_scale, Tensor dbias)"
)

SMALL = 4 * 2**20  # bytes that nobody misses
SKIP_ROWS = {"": 1, "_triton": 128}  # of each kernel set: the rows that skip a tile together


class RowStatistics(NamedTuple):
    """The statistics of the class cosines, [N] each; `functional.ClassStatistics` says what each is."""

    neg_lse: torch.Tensor
    target_cos: torch.Tensor
    x_norm: torch.Tensor
    hardest_cos: torch.Tensor
    hardest_class: torch.Tensor
    neg_cos_sum: torch.Tensor
    target_center: torch.Tensor
    hard_cos_sum: torch.Tensor
    hard_count: torch.Tensor

    def rounded(self) -> RowStatistics:
        """The statistics with target_cos in the dtype of the others, as callers see them."""
        return self._replace(target_cos=self.target_cos.to(self.neg_lse.dtype))


class Options(NamedTuple):
    """What a problem is apart from its tensors; the constants of the ops, in their order."""

    negatives: str = "cosine"
    sub_centers: int = 1
    normalize_x: bool = True
    normalize_weight: bool = True
    eps: float = 1e-12
    ignore_index: int = -100
    absent_index: int = -100  # equal to ignore_index: no row is absent


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums over inputs of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def plan_cpp(n: int, c: int, sub_centers: int, d: int, dtype: torch.dtype, workspace: int | None) -> tuple[int, int]:
    """(classes in a tile, tiles whose cosines the forward keeps) within `workspace` bytes."""
    # About 32 tiles of 128 to 512 centres: with fewer the products run slower.
    block = max(1, min(512, -(-c * sub_centers // (32 * 128)) * 128) // sub_centers)
    blocks = -(-c // block)
    budget = max(c * sub_centers * d * dtype.itemsize // 4, SMALL) if workspace is None else workspace
    tile = n * block * sub_centers * accumulate_dtype(dtype).itemsize
    return block, min(blocks, budget // max(1, tile))


def plan_triton(n: int, c: int, sub_centers: int, d: int, dtype: torch.dtype, workspace: int | None) -> tuple[int, int]:
    """The same for the GPU, where computing a tile again costs less than reading it back."""
    from . import triton_kernels

    return triton_kernels.tile_classes(d, dtype, sub_centers), 0


def count_classes(weight: torch.Tensor, classes: torch.Tensor | None, sub_centers: int) -> int:
    """How many classes take part."""
    return weight.shape[0] // sub_centers if classes is None else classes.shape[0]


def _fake(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    sub_centers, block, kept_blocks, skip_budget = rest[6], *rest[-4:-1]
    n, classes = x.shape[0], count_classes(weight, rest[4], sub_centers)
    rows = [x.new_empty(n, dtype=accumulate_dtype(x.dtype)) for _ in range(12)]
    rows[1] = x.new_empty(n, dtype=reference.target_dtype(x.device))
    for integer in (4, 6):
        rows[integer] = target.new_empty(n)
    tiles = (classes + block - 1) // block
    return (
        *rows,
        rows[0].new_empty(classes * sub_centers),
        rows[0].new_empty(n, tiles) if skip_budget > 0 else rows[0].new_empty(0, 0),
        rows[0].new_empty(kept_blocks * n * block * sub_centers),
    )


def _fake_backward(*args: Any) -> tuple[torch.Tensor, ...]:
    d_neg_lse, x, weight, (need_x, need_weight, need_class_scale, need_bias) = args[0], args[4], args[5], args[-4:]
    sub_centers = args[20]
    classes = count_classes(weight, args[11], sub_centers)
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
        weight.new_empty(classes * sub_centers, weight.shape[1]) if need_weight else weight.new_empty(0),
        d_neg_lse.new_empty(classes if need_class_scale else 0),
        d_neg_lse.new_empty(classes if need_bias else 0),
    )


def skip_plan(
    d_neg_lse: torch.Tensor,
    neg_lse: torch.Tensor,
    block_lse: torch.Tensor,
    rows: int,
    budget: float,
    target_tile: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tiles the backward may leave out, uint8 [ceil(N / rows), tiles], and the report.

    The mass of a tile is the L1 norm of the gradient of its logits, sum_i |d_neg_lse_i| exp(block_lse_ib - neg_lse_i):
    it is known before the tile is computed. The lightest tiles are left out while their masses add up to at most
    ``budget`` times the whole, the sum of |d_neg_lse_i|. The report is (that share, the share of tiles left out). Tiles
    ``target_tile`` [N] of their rows (-1: none) stay, where the kernels cannot leave out the negatives around a target.
    """
    # The certificate must not be less than what is true: large exponents are rounded coarsely.
    slack = 2 * torch.finfo(neg_lse.dtype).eps * torch.maximum(block_lse.abs(), neg_lse.abs()[:, None])
    slack = torch.where(slack.isfinite(), slack, 0)
    mass = d_neg_lse.abs()[:, None] * torch.exp(block_lse - neg_lse[:, None] + slack)
    mass = torch.where((d_neg_lse == 0)[:, None] | (neg_lse == -torch.inf)[:, None], 0, mass)
    if rows > 1:
        padded = torch.nn.functional.pad(mass, (0, 0, 0, -len(mass) % rows))
        mass = padded.view(-1, rows, mass.shape[1]).sum(1)
    mass = mass.double() * (1 + 1e-4)
    if target_tile is not None:
        group = torch.arange(len(target_tile), device=mass.device) // rows
        held = mass.new_zeros(mass.numel() + 1)  # the last entry takes the rows without a target
        held.scatter_(0, torch.where(target_tile >= 0, group * mass.shape[1] + target_tile, mass.numel()), torch.inf)
        mass = mass + held[:-1].view(mass.shape)
    whole = d_neg_lse.double().abs().sum()
    light, order = mass.flatten().sort()
    total = light.cumsum(0)
    fits = total <= budget * whole
    skip = torch.zeros_like(fits).scatter_(0, order, fits).view(mass.shape)
    dropped = torch.where(fits, light, 0).sum() / torch.where(whole > 0, whole, 1)
    return skip.to(torch.uint8), torch.stack([dropped, fits.double().mean()])


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    # The report is written, not read: saved, its new version would spoil a second backward.
    *ctx.constants, ctx.skip_budget, ctx.skip_report = inputs[8:]
    neg_lse, _, x_norm, hardest_cos, hardest_class, _, target_center, *rest = output
    _, _, top, log_sum, scale_slope, w_norm, block_lse, kept = rest
    ctx.mark_non_differentiable(hardest_cos, hardest_class, target_center, *rest)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *inputs[:8], x_norm, target_center, top, log_sum, w_norm, kept, neg_lse, scale_slope, block_lse
    )


def _no_second_derivative(ctx: Any, *grads: torch.Tensor) -> None:
    raise RuntimeError(
        "the class softmax has no second derivative in its kernels; use hyperkernels.backend('reference') for one"
    )


def target_tiles(
    weight: torch.Tensor,
    target: torch.Tensor,
    classes: torch.Tensor | None,
    negatives: str,
    sub_centers: int,
    normalize_x: bool,
    normalize_weight: bool,
    eps: float,
    ignore_index: int,
    absent_index: int,
    block: int,
    kept_blocks: int,
) -> torch.Tensor:
    """The tile of each row's own class, -1 where it has none here."""
    here = (target != ignore_index) & (target != absent_index)
    here &= (target >= 0) & (target < count_classes(weight, classes, sub_centers))
    return torch.where(here, target // block, -1)


# An op, so that its dependence on x, weight and scale is known, and refused, where it is differentiated again.
LIBRARY.define(
    "class_statistics_dscale(Tensor d_neg_lse, Tensor scale_slope, Tensor x, Tensor weight, Tensor scale) -> Tensor"
)
LIBRARY.impl(
    "class_statistics_dscale", lambda d, slope, *_: torch.where(d == 0, 0, d * slope), "CompositeExplicitAutograd"
)
register_fake(LIBRARY, "class_statistics_dscale", lambda d, *_: torch.empty_like(d))
torch.library.register_autograd("hyperkernels::class_statistics_dscale", _no_second_derivative, lib=LIBRARY)


def backward_arguments(
    ctx: Any, grads: tuple[torch.Tensor | None, ...], skip_rows: int
) -> tuple[list[torch.Tensor], list[Any], torch.Tensor, torch.Tensor]:
    """(incoming gradients, what the backward op reads of the forward, the skip plan, scale_slope)."""
    *saved, neg_lse, scale_slope, block_lse = ctx.saved_tensors
    zeros = torch.zeros_like(neg_lse)
    incoming = [zeros if gradient is None else gradient.to(zeros.dtype) for gradient in (*grads[:3], grads[5])]
    skip = neg_lse.new_empty(0, dtype=torch.uint8)
    # The plan knows the gradient of the log-sum-exp alone; the one of the sum of cosines reaches every class.
    if ctx.skip_budget > 0 and grads[5] is None:
        tile = target_tiles(saved[1], saved[2], saved[7], *ctx.constants) if skip_rows > 1 else None
        skip, report = skip_plan(incoming[0], neg_lse, block_lse, skip_rows, ctx.skip_budget, tile)
        if ctx.skip_report is not None:
            ctx.skip_report.copy_(report)
    elif ctx.skip_report is not None:
        ctx.skip_report.zero_()
    return incoming, saved, skip, scale_slope


def _define(suffix: str) -> None:
    """The two operations of one kernel set."""
    name, backward_name = f"class_statistics{suffix}", f"class_statistics_backward{suffix}"
    LIBRARY.define(name + _FORWARD)
    LIBRARY.define(backward_name + _BACKWARD)

    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        incoming, saved, skip, scale_slope = backward_arguments(ctx, grads, SKIP_ROWS[suffix])
        needs = [ctx.needs_input_grad[i] for i in (0, 1, 4, 5)]
        computed = getattr(torch.ops.hyperkernels, backward_name)(*incoming, *saved, skip, *ctx.constants, *needs)
        dx, dweight, dclass_scale, dbias = (
            gradient if need else None for gradient, need in zip(computed, needs, strict=True)
        )
        classes = saved[7]
        if dweight is not None and classes is not None:
            rows = reference.rows_of_classes(classes, ctx.constants[1])
            dweight = reference.sparse_rows(dweight, rows, saved[1].shape)
        dscale = None
        if ctx.needs_input_grad[3]:
            dscale = torch.ops.hyperkernels.class_statistics_dscale(incoming[0], scale_slope, *saved[:2], saved[3])
        return dx, dweight, None, dscale, dclass_scale, dbias, *[None] * 13

    for op, fake in ((name, _fake), (backward_name, _fake_backward)):
        register_fake(LIBRARY, op, fake)
    torch.library.register_autograd(f"hyperkernels::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    # Without this torch would take the gradient for a constant and lose the second derivative in silence.
    torch.library.register_autograd(f"hyperkernels::{backward_name}", _no_second_derivative, lib=LIBRARY)


def _register_triton() -> None:
    """Triton runs on CUDA, and on the CPU in its interpreter; it is imported at the first call."""

    def launch(function: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            from . import triton_kernels

            return getattr(triton_kernels, function)(*args)

        return call

    for device in ("CPU", "CUDA"):
        LIBRARY.impl("class_statistics_triton", launch("class_statistics"), device)
        LIBRARY.impl("class_statistics_backward_triton", launch("class_statistics_backward"), device)


for _suffix in SKIP_ROWS:
    _define(_suffix)
_register_triton()


def class_statistics(
    x: torch.Tensor,  # [N, D]
    weight: torch.Tensor,  # [C*K, D]
    target: torch.Tensor,  # [N], a position in `classes` where they are given
    scale: torch.Tensor,  # [N], of the accumulator's dtype, as the four below
    class_scale: torch.Tensor | None,  # [C], or [R], as the bias
    bias: torch.Tensor | None,
    negatives: Negatives,
    classes: torch.Tensor | None,  # [R] int64, increasing, or None for all
    options: Options,
    workspace: int | None,
    skip_budget: float,
    skip_report: torch.Tensor | None,  # [2] float64
    receiver: Receiver | None = None,  # takes the weight's gradient in autograd's place
) -> RowStatistics:
    from . import chunked

    if not (torch.is_grad_enabled() and weight.requires_grad):
        receiver = None
    backend = _backend.select("margin_softmax", x.device)
    if receiver is not None and backend == "reference":
        weight = chunked.whole(receiver, weight)
    problem = (x, weight, target, scale, class_scale, bias, negatives.parameters, classes, *options)
    if backend == "reference":
        if skip_report is not None:
            skip_report.zero_()
        return RowStatistics(*reference.class_statistics(*problem))
    leaves = [t for t in (x, weight, scale, class_scale, bias) if t is not None]
    _backend.refuse_forward_mode("class_statistics", *leaves)
    for_backward = torch.is_grad_enabled() and any(t.requires_grad for t in leaves)
    count = count_classes(weight, classes, options.sub_centers)
    # Exported, the number of kept tiles would be a question to the size of the batch.
    keeps = for_backward and receiver is None and not torch.compiler.is_exporting()
    sizes = (x.shape[0], count, options.sub_centers, x.shape[1], x.dtype, workspace if keeps else 0)
    block, kept_blocks = plan_triton(*sizes) if backend == "triton" else plan_cpp(*sizes)
    suffix = "_triton" if backend == "triton" else ""
    arguments = (*problem, block, kept_blocks, skip_budget if for_backward else 0.0, skip_report)
    if receiver is not None:
        return RowStatistics(*chunked.class_statistics(receiver, suffix, *arguments)[:9])
    return RowStatistics(*getattr(torch.ops.hyperkernels, f"class_statistics{suffix}")(*arguments)[:9])
