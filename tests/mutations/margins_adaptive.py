"""Terms of the margins that depend on the sample."""

from .changes import Change

CHANGES = {
    "margins/adaptive.py": [
        Change(
            "ElasticFace: std",
            ".normal_(self.m, self.std, ",
            ".normal_(self.m, 0.5 * self.std, ",
            "heads/test_head_state::test_elasticface_draws_anew[cpp]",
        ),
        Change(
            "ElasticFace: mean",
            ".normal_(self.m, self.std, ",
            ".normal_(0.0, self.std, ",
            "heads/test_head_state::test_elasticface_draws_anew[cpp]",
        ),
        Change(
            "ElasticFace: of the cosine",
            "return target_cos - margins",
            "return target_cos",
            "heads/test_head_state::test_elasticface_draws_anew[cpp]",
        ),
        Change(
            "ElasticFace: of the angle",
            "return add_angle(target_cos, margins, self.gradient)",
            "return target_cos",
            "heads/test_head_state::test_elasticface_draws_anew[cpp]",
        ),
        Change(
            "ElasticFace: order of ranks",
            "torch.where(counted, -target_cos.detach(), torch.inf)",
            "torch.where(counted, target_cos.detach(), torch.inf)",
            "heads/test_head_state::test_elasticface_plus_against_the_definitions",
        ),
        Change(
            "ElasticFace: permutation",
            "smallest_first[position[largest_cos_first][position]]",
            "smallest_first[position]",
            "heads/test_head_state::test_elasticface_plus_against_the_definitions",
        ),
        Change(
            "AdaFace: h",
            "/ (std + 1e-3) * self.h)",
            "/ (std + 1e-3))",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: mean", "q = ((norms - mean)", "q = (norms", "heads/test_head_state::test_adaface[cpp-repository]"
        ),
        Change(
            "AdaFace: deviation",
            "/ (std + 1e-3) * self.h)",
            "* self.h)",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: q in [-1, 1]",
            "* self.h).clamp(-1, 1)",
            "* self.h)",
            "heads/test_head_state::test_adaface_angles_are_clipped",
        ),
        Change(
            "AdaFace: angle",
            "psi = add_angle(cos, -self.m * q)",
            "psi = cos",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: additive margin",
            "psi - (self.m + self.m * q)",
            "psi - self.m * q",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: additive share of q",
            "psi - (self.m + self.m * q)",
            "psi - self.m",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: lower clip",
            "psi = torch.where(theta < self.clip, math.cos(self.clip), psi)",
            "pass",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: upper clip",
            "psi = torch.where(theta > math.pi - self.clip, -math.cos(self.clip), psi)",
            "pass",
            "heads/test_head_state::test_adaface_angles_are_clipped",
        ),
        Change(
            "AdaFace: range of the norms",
            "norms = x_norm.detach().clamp(1e-3, 100)",
            "norms = x_norm.detach()",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: norms carry no gradient",
            "norms = x_norm.detach().clamp(1e-3, 100)",
            "norms = x_norm.clamp(1e-3, 100)",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: running mean",
            "follow(self.batch_mean, mean, self.t_alpha, count > 0)",
            "pass",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: running deviation",
            "follow(self.batch_std, variance.sqrt(), self.t_alpha, count > 1)",
            "pass",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "AdaFace: unbiased variance",
            "(count - 1).clamp_min(1)",
            "count",
            "heads/test_head_state::test_adaface[cpp-repository]",
        ),
        Change(
            "MagFace: l_m",
            "margin = self.l_m + self.slope",
            "margin = self.slope",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: slope",
            "self.slope * (x_norm.clamp(self.l_a, self.u_a) - self.l_a)",
            "0 * x_norm",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: range of the norm",
            "self.slope * (x_norm.clamp(self.l_a, self.u_a) - self.l_a)",
            "self.slope * (x_norm - self.l_a)",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: l_a",
            "self.slope * (x_norm.clamp(self.l_a, self.u_a) - self.l_a)",
            "self.slope * x_norm.clamp(self.l_a, self.u_a)",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: easy margin",
            '"easy" if self.easy_margin else "linear"',
            '"linear"',
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: lambda_g",
            "return self.lambda_g * (a",
            "return (a",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: term of long norms",
            "(a / self.u_a**2 + 1 / a)",
            "(1 / a)",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: term of short norms",
            "(a / self.u_a**2 + 1 / a)",
            "(a / self.u_a**2)",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "MagFace: range in the term",
            "a = rows.x_norm.clamp(self.l_a, self.u_a)",
            "a = rows.x_norm",
            "heads/test_heads::test_magface_rewards_large_norms[cpp]",
        ),
        Change(
            "AdaCos: start",
            "math.sqrt(2) * math.log(num_classes - 1)",
            "math.log(num_classes - 1)",
            "heads/test_head_state::test_adacos[cpp]",
        ),
        Change(
            "AdaCos: mean over rows",
            ".logsumexp(0) - count.log()",
            ".logsumexp(0)",
            "heads/test_head_state::test_adacos[cpp]",
        ),
        Change(
            "AdaCos: median",
            "((count - 1) // 2)",
            "(count - 1)",
            "heads/test_head_state::test_adacos_takes_the_lower_middle_angle",
        ),
        Change(
            "AdaCos: pi / 4",
            "middle.clamp(max=math.pi / 4).cos()",
            "middle.cos()",
            "heads/test_head_state::test_adacos[cpp]",
        ),
        Change(
            "AdaCos: only a scale",
            "(count > 0) & (scale > 0) & scale.isfinite()",
            "count > 0",
            "heads/test_head_state::test_adacos_never_takes_a_scale_that_is_no_scale",
        ),
    ],
}
