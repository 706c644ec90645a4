"""The parts of ``examples/train_ngpt.py``: text, the two models, training and plots, a file each."""
