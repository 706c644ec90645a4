"""Problems of sampled classes. Classes that are not sampled hold NaN: nothing may read them."""

import torch

from hyperkernels.kernels.margin_softmax.rows import rows_of_classes

from .margin_softmax_cases import problem

C, R = 90, 31
FLOAT64 = torch.float64


def sample(count=C, sampled=R):
    return torch.randperm(count)[:sampled].sort().values


def spread(values, classes, count, sub_centers=1):
    """[count * K, ...] with `values` in the rows of the classes and NaN in the others."""
    full = torch.full((count * sub_centers, *values.shape[1:]), torch.nan, dtype=values.dtype)
    full[rows_of_classes(classes, sub_centers)] = values.detach()
    return full.requires_grad_()


def sampled_problem(n=40, d=12, sub_centers=1, dtype=FLOAT64, ignored=3, **options):
    """(x, the whole weight, target), (x, the gathered weight, positions), classes."""
    x, few, place = problem(n, R * sub_centers, d, dtype, **options)
    place %= R
    place[:ignored] = -100
    classes = sample()
    target = torch.where(place < 0, place, classes[place.clamp_min(0)])
    return (x, spread(few, classes, C, sub_centers), target), (x, few, place), classes
