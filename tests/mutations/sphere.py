"""Terms of the functions of the sphere."""

from .changes import Change

CHANGES = {
    "sphere/means.py": [
        Change(
            "Fréchet mean: iterations",
            "mu = exp_map(mu, (pull @ unit)[None])",
            "pass",
            "sphere/test_means::test_frechet_mean[False-0.01]",
        ),
        Change(
            "Fréchet mean: weights",
            "share = share * weights.to(share.dtype)",
            "pass",
            "sphere/test_means::test_frechet_mean_of_two_is_the_midpoint",
        ),
        Change(
            "Fréchet mean: angle over sine",
            "pull = share * _angle_over_sine(unit @ mu[0])",
            "pull = share",
            "sphere/test_means::test_frechet_mean[False-0.01]",
        ),
        Change(
            "circular variance: length of the mean",
            "return spread / (1 + torch.linalg.vector_norm(mean))",
            "return spread",
            "sphere/test_means::test_circular_variance",
        ),
        Change(
            "circular variance: spread",
            "(unit - mean).square().sum(1)",
            "unit.square().sum(1)",
            "sphere/test_means::test_circular_variance",
        ),
        Change(
            "k-means: nearest",
            "found.argmax, len(centers))",
            "found.argmin, len(centers))",
            "sphere/test_means::test_kmeans_step[dtype0]",
        ),
        Change(
            "k-means: unit rows",
            "segment_mean(unit_norm(x.to(wide)), found",
            "segment_mean(x.to(wide), found",
            "sphere/test_means::test_kmeans_step[dtype0]",
        ),
        Change(
            "k-means: centres without rows",
            "torch.where(moved, unit_norm(means), unit_norm(centers.to(wide)))",
            "unit_norm(means)",
            "sphere/test_means::test_kmeans_step_keeps_centers_without_rows_and_finds_clusters",
        ),
    ],
    "sphere/dispersion.py": [
        Change(
            "Riesz energy: s",
            "slope = held.rsqrt() ** (s + 2)",
            "slope = held.rsqrt() ** 3",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: s = 0",
            "held.log().mul_(-0.5)",
            "held.log().mul_(-1)",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: tangent below the floor",
            "value += held.sub_(square).mul_(slope).mul_(factor / 2)",
            "pass",
            "sphere/test_dispersion::test_riesz_energy_below_the_floor[0.0]",
        ),
        Change(
            "Riesz energy: ordered pairs",
            "energy + 2 * value.sum() - value[:, : last - first].sum()",
            "energy + value.sum()",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: itself",
            "value.diagonal().zero_()",
            "pass",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: gradient of the rows",
            "gradient[first:last] += slope @ after",
            "pass",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: gradient of later blocks",
            "gradient[last:] += slope[:, last - first :].T @ block",
            "pass",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-2]",
        ),
        Change(
            "Riesz energy: mean",
            "energy / max(n * (n - 1), 1)",
            "energy / n",
            "sphere/test_dispersion::test_riesz_energy[1-0.0-3]",
        ),
        Change(
            "KoLeo: root",
            "-(_root(square) + eps).log().mean()",
            "-(square + eps).log().mean()",
            "sphere/test_dispersion::test_nearest[2]",
        ),
        Change(
            "KoLeo: eps",
            "(_root(square) + eps).log()",
            "(_root(square)).log()",
            "sphere/test_dispersion::test_nearest[2]",
        ),
        Change(
            "KoLeo: sign", "return -(_root(square)", "return (_root(square)", "sphere/test_dispersion::test_nearest[2]"
        ),
        Change(
            "nearest angle: twice",
            "angle = 2 * torch.atan2",
            "angle = torch.atan2",
            "sphere/test_dispersion::test_nearest[2]",
        ),
        Change(
            "nearest angle: other side",
            "_root(4 - square)",
            "_root(4 + 0 * square)",
            "sphere/test_dispersion::test_nearest[2]",
        ),
        Change(
            "packing: temperature outside",
            "return temperature * log_mean_exp_of",
            "return log_mean_exp_of",
            "sphere/test_dispersion::test_packing[2-0.05]",
        ),
        Change(
            "packing: temperature inside",
            "scale=1 / temperature)",
            "scale=1.0)",
            "sphere/test_dispersion::test_packing[2-0.05]",
        ),
    ],
    "sphere/radius.py": [
        Change(
            "SVDD: radius", "return square + _mean", "return _mean", "sphere/test_functions::test_svdd_loss[0.03-1.3]"
        ),
        Change(
            "SVDD: outside alone",
            "_mean(F.relu(distance - square)) / nu",
            "_mean(distance - square) / nu",
            "sphere/test_functions::test_svdd_loss",
        ),
        Change(
            "SVDD: nu",
            "F.relu(distance - square)) / nu",
            "F.relu(distance - square))",
            "sphere/test_functions::test_svdd_loss[0.03-0.0]",
        ),
        Change(
            "shell: outside",
            "F.relu(distance - high) + F.relu(low - distance)",
            "F.relu(low - distance)",
            "sphere/test_functions::test_shell_loss",
        ),
        Change(
            "shell: inside",
            "F.relu(distance - high) + F.relu(low - distance)",
            "F.relu(distance - high)",
            "sphere/test_functions::test_shell_loss",
        ),
        Change(
            "radii: quantiles",
            "for share in (nu, 1 - nu):",
            "for share in (nu, 1):",
            "sphere/test_functions::test_shell_radii_are_quantiles[0.03-2]",
        ),
        Change(
            "radii: between two rows",
            "torch.lerp(distance[place], after, share * last - place)",
            "distance[place]",
            "sphere/test_functions::test_shell_radii_are_quantiles[0.03-2]",
        ),
        Change(
            "centre: smallest",
            "torch.where(mean.abs() < smallest, mean.sign() * smallest, mean)",
            "mean",
            "sphere/test_functions::test_svdd_center",
        ),
        Change(
            "barrier: radii of the rows",
            "radius = norm / ((norm + 1).sqrt() + 1)",
            "radius = norm",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.1]",
        ),
        Change(
            "barrier: 0.9 of the anomalies",
            "0.9 * radius.detach(), largest_radius)",
            "radius.detach(), largest_radius)",
            "sphere/test_functions::test_log_barrier_loss[False-0.3-0.1]",
        ),
        Change(
            "barrier: largest radius",
            "high = torch.cat([high, high.new_full((1,), largest_radius)]).amin()",
            "high = torch.cat([high, high.new_full((1,), 10.0)]).amin()",
            "sphere/test_functions::test_log_barrier_loss",
        ),
        Change(
            "barrier: inner radius",
            "low = 0.99 * high",
            "low = high",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.1]",
        ),
        Change(
            "barrier: outside",
            "_barrier(radius - high, ~anomalous) + ",
            "",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.4]",
        ),
        Change(
            "barrier: inside",
            " + _barrier(low - radius, ~anomalous)",
            "",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.1]",
        ),
        Change(
            "barrier: anomalies stay outside",
            " + _barrier(high + 0.1 - radius, anomalous)",
            "",
            "sphere/test_functions::test_log_barrier_loss[True-0.3-0.1]",
        ),
        Change(
            "barrier: cosine of the target",
            "+ (1 - cosine)",
            "",
            "sphere/test_functions::test_log_barrier_loss[True-0.3-0.1]",
        ),
        Change(
            "barrier: distance of the target",
            "apart = (rows - before).square().sum(1) / max(x.shape[1], 1) + ",
            "apart = ",
            "sphere/test_functions::test_log_barrier_loss[True-0.3-0.1]",
        ),
        Change(
            "barrier: factor",
            "* u.detach().clamp_max(_LARGEST_EXPONENT).exp(), among)",
            ", among)",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.1]",
        ),
        Change(
            "barrier: factor constant",
            "u.detach().clamp_max",
            "u.clamp_max",
            "sphere/test_functions::test_log_barrier_loss[False-0.0-0.1]",
        ),
    ],
    "sphere/features.py": [
        Change(
            "alignment: chord",
            "chord = 2 * torch.sin(angle(x, y) / 2)",
            "chord = angle(x, y)",
            "sphere/test_functions::test_alignment[0.5]",
        ),
        Change(
            "alignment: power",
            "torch.where(apart, chord, 1) ** alpha, 0)",
            "torch.where(apart, chord, 1), 0)",
            "sphere/test_functions::test_alignment[0.5]",
        ),
        Change(
            "alignment: mean",
            "power.sum() / max(power.numel(), 1)",
            "power.sum()",
            "sphere/test_functions::test_alignment[0.5]",
        ),
        Change(
            "grounding index: question",
            "index = apart(response, question) / (of_context + eps)",
            "index = 1 / (of_context + eps)",
            "sphere/test_functions::test_grounding_index",
        ),
        Change(
            "grounding index: context",
            "apart(response, question) / (of_context + eps)",
            "apart(response, question)",
            "sphere/test_functions::test_grounding_index",
        ),
        Change(
            "grounding index: eps", "(of_context + eps)", "(of_context)", "sphere/test_functions::test_grounding_index"
        ),
        Change(
            "nearest residual: of its label",
            '"all" if labels is None else "positive"',
            '"all"',
            "sphere/test_functions::test_nearest_residual[True-dtype0]",
        ),
        Change(
            "nearest residual: difference",
            "(x - nearest).to(x.dtype)",
            "nearest.to(x.dtype)",
            "sphere/test_functions::test_nearest_residual[False-dtype0]",
        ),
    ],
}
