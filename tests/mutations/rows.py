"""Terms of the unit norm and of the sphere's ops, in the reference."""

from .changes import Change

CHANGES = {
    "kernels/unit_norm/reference.py": [
        Change(
            "length",
            "return (v / torch.maximum(norm, torch.full_like(near, eps) / near)).to(x.dtype)",
            "return v.to(x.dtype)",
            "kernels/unit_norm/test_unit_norm::test_accuracy[shape0-dtype0]",
        ),
        Change(
            "floor of the length",
            "torch.maximum(norm, torch.full_like(near, eps) / near)",
            "norm",
            "sphere/test_sphere::test_segment_mean[reference-0-3-dtype0]",
        ),
        Change(
            "extreme rows",
            "return torch.where(extreme, largest, 1)",
            "return torch.where(extreme, 1, 1) + 0 * largest",
            "kernels/unit_norm/test_unit_norm::test_doubles_whose_squares_leave_their_range[reference-1e-32",
        ),
        Change(
            "gradient: projection",
            "return ((g - y * radial) / divisor).to(x.dtype)",
            "return (g / divisor).to(x.dtype)",
            "kernels/unit_norm/test_unit_norm::test_a_gradient_that_keeps_its_graph_is_the_same[cpp-1e-30]",
        ),
        Change(
            "gradient: over the length",
            "return ((g - y * radial) / divisor).to(x.dtype)",
            "return (g - y * radial).to(x.dtype)",
            "kernels/unit_norm/test_unit_norm::test_a_gradient_that_keeps_its_graph_is_the_same[cpp-1e-30]",
        ),
    ],
    "kernels/sphere/reference.py": [
        Change(
            "direction: length",
            "return torch.where(short, 0, x) / torch.where(short, 1, norm)",
            "return torch.where(short, 0, x)",
            "kernels/sphere/test_kernels::test_accuracy[1-dtype0-angle]",
        ),
        Change(
            "direction: short rows",
            "return torch.where(short, 0, x) / torch.where(short, 1, norm)",
            "return x / torch.where(short, 1, norm)",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-angle]",
        ),
        Change(
            "angle: twice",
            "torch.pi, 2 * torch.atan2(chord, co_chord))",
            "torch.pi, torch.atan2(chord, co_chord))",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-angle]",
        ),
        Change(
            "angle: opposite points",
            "angle = torch.where(opposite, torch.pi, ",
            "angle = torch.where(opposite, 0, ",
            "kernels/sphere/test_kernels::test_accuracy[1-dtype0-angle]",
        ),
        Change(
            "log: tangent part",
            "way = apart - (apart * x).sum(-1, keepdim=True) * x",
            "way = apart",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-log]",
        ),
        Change(
            "log: length",
            "way / sine_ratio)",
            "way)",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-log]",
        ),
        Change(
            "log: opposite points",
            "torch.pi * _crossing(x.detach())",
            "_crossing(x.detach())",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-log]",
        ),
        Change(
            "slerp: along the start",
            "torch.cos(part * angle) * x + part",
            "x + part",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-slerp]",
        ),
        Change(
            "slerp: along the way",
            "part * _sinc(part * angle) / sine_ratio * way",
            "part * way / sine_ratio",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-slerp]",
        ),
        Change(
            "slerp: share",
            "+ part * _sinc(part * angle)",
            "+ _sinc(part * angle)",
            "kernels/sphere/test_kernels::test_accuracy_at_all_angles[0.001-dtype0-slerp]",
        ),
        Change(
            "slerp: far points",
            "0.5 * chord * torch.where(opposite, 1, co_chord)",
            "chord * torch.where(opposite, 1, co_chord)",
            "kernels/sphere/test_kernels::test_accuracy[2-dtype0-slerp]",
        ),
        Change(
            "slerp: opposite points",
            "torch.sin(part * torch.pi) * _crossing(fixed)",
            "0 * _crossing(fixed)",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-slerp]",
        ),
        Change(
            "tangent",
            "w = v - (x * v).sum(-1, keepdim=True) * x\n    if kind",
            "w = v - 0 * x\n    if kind",
            "kernels/sphere/test_kernels::test_accuracy[1-dtype0-tangent",
        ),
        Change(
            "exp: cosine",
            "torch.cos(norm) * x + _sinc",
            "x + _sinc",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-exp]",
        ),
        Change("exp: sine", "_sinc(norm) * w)", "w)", "kernels/sphere/test_kernels::test_zero_rows[dtype0-exp]"),
        Change(
            "retract: length",
            "return ((x + w) / torch.sqrt(near**-2 + _length(w) ** 2)).to(dtype)",
            "return (x + w).to(dtype)",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-retract]",
        ),
        Change(
            "retract: square of the tangent",
            "torch.sqrt(near**-2 + _length(w) ** 2)",
            "torch.sqrt(near**-2 + _length(w))",
            "kernels/sphere/test_kernels::test_zero_rows[dtype0-retract]",
        ),
        Change(
            "residual: alpha",
            "alpha.to(start.dtype) * (end - start)",
            "(1 + 0 * alpha.to(start.dtype)) * (end - start)",
            "kernels/sphere/test_kernels::test_accuracy",
        ),
        Change(
            "residual: from the start",
            "alpha.to(start.dtype) * (end - start)",
            "alpha.to(start.dtype) * end",
            "kernels/sphere/test_kernels::test_accuracy[1-dtype0-residual]",
        ),
        Change(
            "residual: back on the sphere",
            "return direction(start + alpha.to(start.dtype) * (end - start)).to(h.dtype)",
            "return (start + alpha.to(start.dtype) * (end - start)).to(h.dtype)",
            "kernels/sphere/test_kernels::test_accuracy[1-dtype0-residual]",
        ),
        Change(
            "scaled unit norm: scale",
            "* scale.to(unit.dtype)",
            "* (1 + 0 * scale.to(unit.dtype))",
            "kernels/sphere/test_kernels::test_scales",
        ),
        Change(
            "segment sum: labels outside",
            "torch.where((labels >= 0) & (labels < segments), labels, segments)",
            "labels.clamp(0, segments - 1)",
            "kernels/sphere/test_kernels::test_segment_sum[7-1-dtype0]",
        ),
    ],
}
