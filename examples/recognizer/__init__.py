"""The parts of ``examples/train_recognizer.py``: data, embedder, training loop, evaluation and report, a file each."""
