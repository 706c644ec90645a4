"""The parts of ``examples/pack_sphere.py``: the bound, the optimisation and the picture, a file each."""
