"""The picture of the report."""

from __future__ import annotations

from pathlib import Path

from examples.recognizer.plots import BLUE, RED, STYLE, plt, save

from .training import Curve

COLOURS = {"GPT": RED, "nGPT": BLUE}


def curves(found: dict[str, Curve], path: Path) -> None:
    """Validation loss of every model against steps and against the seconds they took."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained", sharey=True)
        for name, curve in found.items():
            # The first measurement, before the first step, has no place on a log axis.
            for axis, x in zip(axes, (curve.step, curve.seconds), strict=True):
                axis.plot(
                    x[1:], curve.validation[1:], "o-", color=COLOURS[name], linewidth=1.8, markersize=3.5, label=name
                )
                axis.annotate(
                    f"{curve.validation[-1]:.3f}",
                    (x[-1], curve.validation[-1]),
                    (6, 0),
                    textcoords="offset points",
                    color=COLOURS[name],
                    va="center",
                )
        axes[0].set(xlabel="steps", ylabel="validation loss, nats a byte", title="Equal steps")
        axes[1].set(xlabel="seconds of training", title="Equal time")
        for axis in axes:
            axis.set(xscale="log")
            axis.margins(x=0.12, y=0.12)
        axes[0].legend()
        save(figure, path)
