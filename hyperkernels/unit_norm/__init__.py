"""Projection of vectors onto the unit sphere."""
