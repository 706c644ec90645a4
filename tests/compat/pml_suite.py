"""Runs pytorch-metric-learning's own tests with our miners and losses in the place of its own.

    python -m tests.compat.pml_suite PATH_TO_ITS_CHECKOUT [miners] [losses] [-v]

Its release 2.9.0 must be installed (the checkout gives only the tests). Prints the failures and the counts.
"""

from __future__ import annotations

import importlib
import os
import sys
import unittest
from pathlib import Path

# Tests that cannot hold, and why.
NOT_APPLICABLE = {
    "test_batch_easy_hard_miner_labels.TestBatchEasyHardMinerLabels.test_labels": "asks for SNRDistance",
    "test_triplet_margin_miner.TestTripletMarginMiner.test_triplet_margin_miner": "points a degree apart: which of two "
    "equal distances is the larger is a matter of rounding",
    "test_cross_batch_memory.TestCrossBatchMemory.test_all_losses": "NCALoss there takes the sample itself in the "
    "memory for its neighbour",
    "test_proxy_nca_loss.TestProxyNCALoss.test_proxy_nca_loss": "expects the proxies to change to float64 with the "
    "embeddings (passes with TEST_DTYPES=float32)",
    "test_ranked_list_loss.TestRankedListLoss.test_assertion_raises": "expects AssertionError for an imbalance out of "
    "range; ours is ValueError",
}


def inject() -> set[str]:
    """Puts our classes where theirs are imported from; the names replaced."""
    names = set()
    for kind in ("miners", "losses"):
        ours = importlib.import_module(f"hyperkernels.compat.pytorch_metric_learning.{kind}")
        theirs = importlib.import_module(f"pytorch_metric_learning.{kind}")
        for name in ours.__all__:
            if not hasattr(theirs, name):
                raise AttributeError(f"pytorch_metric_learning.{kind} has no {name}")
            setattr(theirs, name, getattr(ours, name))
            names.add(name)
    return names


def tests_in(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    return [t for item in suite for t in (tests_in(item) if isinstance(item, unittest.TestSuite) else [item])]


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    path, *kinds = [a for a in arguments if a != "-v"]
    os.environ.setdefault("TEST_DEVICE", "cpu")
    os.environ.setdefault("TEST_DTYPES", "float32,float64")
    names = inject()
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]  # the package of this file; theirs has the same name
    failed = 0
    for kind in kinds or ["miners", "losses"]:
        found = unittest.TestLoader().discover(str(Path(path) / "tests" / kind), top_level_dir=path)
        ours, skipped, others = unittest.TestSuite(), [], 0
        for test in tests_in(found):
            name = test.id().removeprefix(f"tests.{kind}.")
            source = Path(sys.modules[type(test).__module__].__file__ or "").read_text()
            if not any(n in source for n in names):
                others += 1
            elif name in NOT_APPLICABLE:
                skipped.append((name, NOT_APPLICABLE[name]))
            else:
                ours.addTest(test)
        result = unittest.TextTestRunner(verbosity=2 if verbose else 1).run(ours)
        bad = len(result.failures) + len(result.errors)
        for name, reason in skipped:
            print(f"not applicable: {name}: {reason}")
        passed = result.testsRun - bad - len(result.skipped)
        print(f"{kind}: {passed} passed, {bad} failed, {len(result.skipped)} skipped by themselves,", end=" ")
        print(f"{len(skipped)} not applicable; {others} of other classes")
        failed += bad
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
