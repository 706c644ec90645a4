"""Normalised cosine-margin softmax over classes, without the N x C logit matrix."""
