"""Terms of distributions on the sphere, of segments, anchors and samplers."""

from .changes import Change

CHANGES = {
    "sphere/vmf.py": [
        Change("vMF norm: area", "(-log_area(d) - log_sum)", "(-log_sum)", "sphere/test_vmf::test_against_mpmath[2]"),
        Change(
            "vMF norm: sum",
            "(-log_area(d) - log_sum)",
            "(-log_area(d) + 0 * log_sum)",
            "sphere/test_vmf::test_against_mpmath[2]",
        ),
        Change(
            "vMF mean length: kappa",
            "wide * _expansion(wide, d)[1]",
            "_expansion(wide, d)[1]",
            "sphere/test_vmf::test_against_mpmath[2]",
        ),
        Change(
            "vMF: down the orders",
            "log_sum = log_sum + torch.log1p(growth / (2 * v))",
            "pass",
            "sphere/test_vmf::test_against_mpmath[2]",
        ),
        Change(
            "vMF: ratio down the orders",
            "ratio = 1 / (2 * v + growth)",
            "ratio = 1 / (2 * v)",
            "sphere/test_vmf::test_against_mpmath[2]",
        ),
        Change(
            "vMF concentration: Newton's steps",
            "kappa = kappa + (length - found) / slope",
            "pass",
            "sphere/test_vmf::test_gradcheck[2]",
        ),
        Change(
            "vMF concentration: slope",
            "return kappa, 1 / slope",
            "return kappa, slope",
            "sphere/test_vmf::test_gradcheck[2]",
        ),
        Change("vMF density: cosine", "+ kappa * cosine", "+ kappa", "sphere/test_vmf::test_log_prob"),
        Change(
            "vMF density: norm",
            "return vmf_log_norm(kappa, x.shape[1]) + ",
            "return ",
            "sphere/test_vmf::test_log_prob",
        ),
    ],
    "sphere/segments.py": [
        Change(
            "segment mean: count",
            " / counts.clamp_min(1)[:, None]",
            "",
            "sphere/test_sphere::test_segment_mean[cpp-40-7-dtype0]",
        ),
        Change(
            "segment mean: direction",
            "unit_norm(means) if normalize else means",
            "means",
            "sphere/test_sphere::test_segment_mean[cpp-40-7-dtype0]",
        ),
    ],
    "sphere/functional.py": [
        Change(
            "Bezier: the curve's parameter",
            "points = slerp(points[:-1], points[1:], t)",
            "points = slerp(points[:-1], points[1:], 0.5)",
            "sphere/test_sphere::test_bezier[cpp]",
        ),
    ],
    "sphere/anchors.py": [
        Change(
            "anchors: best dimensions",
            "wide.sort(dim=1, descending=True, stable=True)",
            "wide.sort(dim=1, descending=False, stable=True)",
            "sphere/test_functions::test_anchor_memory[1]",
        ),
        Change(
            "anchors: shifts",
            "shift = wide[order[first + i]] - wide[order[first + j]]",
            "shift = wide[order[first + i]]",
            "sphere/test_functions::test_anchor_memory[1]",
        ),
        Change(
            "anchors: scale",
            "factors = low + (high - low) * uniform",
            "factors = 1 + 0 * uniform",
            "sphere/test_functions::test_perturb_anchors",
        ),
        Change(
            "anchors: shift",
            "+ shift * memory.shifts",
            "+ 0 * memory.shifts",
            "sphere/test_functions::test_perturb_anchors",
        ),
        Change(
            "anchors: back on the sphere",
            "        made = unit_rows(made, EPS)",
            "        pass",
            "sphere/test_functions::test_perturb_anchors_options[dtype0]",
        ),
    ],
    "sphere/samplers.py": [
        Change(
            "vMF draws: across",
            "* center + across * around)",
            "* center + 0 * across * around)",
            "sphere/test_vmf::test_samples_have_the_moments[0.0-2]",
        ),
        Change(
            "vMF draws: along",
            "likely = kappa * (short - proposed) + (d - 1)",
            "likely = (d - 1)",
            "sphere/test_vmf::test_the_component_along_the_mean_has_its_distribution[2]",
        ),
        Change(
            "vMF draws: surface",
            "+ (d - 1) * (inside.log() - floor)",
            "",
            "sphere/test_vmf::test_the_component_along_the_mean_has_its_distribution[2]",
        ),
    ],
}
