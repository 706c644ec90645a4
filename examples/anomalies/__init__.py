"""The parts of ``examples/detect_anomalies.py``: data and scores, the model and its training, the pictures."""
