"""Geometry of the unit sphere. A point is a row of any length; it stands for its direction."""

from .anchors import AnchorMemory, perturb_anchors
from .dispersion import koleo, mean_nearest_angle, packing, riesz_energy
from .features import alignment, grounding_index, nearest_residual
from .functional import angle, bezier, exp_map, log_map, residual, retract, scaled_unit_norm, slerp, tangent, transport
from .means import circular_variance, frechet_mean, kmeans_step
from .radius import log_barrier_loss, shell_loss, shell_radii, svdd_center, svdd_loss
from .samplers import sample_uniform, sample_vmf
from .segments import segment_mean
from .vmf import vmf_concentration, vmf_log_norm, vmf_log_prob, vmf_mean_length

__all__ = [
    "AnchorMemory",
    "alignment",
    "angle",
    "bezier",
    "circular_variance",
    "exp_map",
    "frechet_mean",
    "grounding_index",
    "kmeans_step",
    "koleo",
    "log_barrier_loss",
    "log_map",
    "mean_nearest_angle",
    "nearest_residual",
    "packing",
    "perturb_anchors",
    "residual",
    "retract",
    "riesz_energy",
    "sample_uniform",
    "sample_vmf",
    "scaled_unit_norm",
    "segment_mean",
    "shell_loss",
    "shell_radii",
    "slerp",
    "svdd_center",
    "svdd_loss",
    "tangent",
    "transport",
    "vmf_concentration",
    "vmf_log_norm",
    "vmf_log_prob",
    "vmf_mean_length",
]
