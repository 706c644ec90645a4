"""An op that several devices register has one C++ signature, whether or not the other device's kernels are built."""

import re
from collections import defaultdict

from tests.support import ROOT

REGISTRATION = re.compile(r'HK_OP\(m, "(\w+)", (\w+)\)')


def signature(function: str, source: str) -> str:
    """Return type and parameter types of a function's definition, without the parameters' names."""
    found = re.search(rf"^(\S[^\n()]*?)\s*\b{function}\(([^)]*)\)\s*\{{", source, re.MULTILINE)
    assert found is not None, f"no definition of {function}"
    parameters = [re.sub(r"\s*\b\w+$", "", " ".join(p.split())) for p in found[2].split(",")]
    return f"{found[1]} ({', '.join(parameters)})"


def test_ops_registered_twice_agree():
    signatures = defaultdict(dict)
    for file in sorted((ROOT / "csrc").rglob("*.cpp")):
        source = file.read_text()
        for op, function in REGISTRATION.findall(source):
            signatures[op][file.relative_to(ROOT)] = signature(function, source)
    several = {op: found for op, found in signatures.items() if len(found) > 1}
    assert {"unit_norm", "unit_norm_", "unit_norm_backward"} <= set(several)
    for op, found in several.items():
        assert len(set(found.values())) == 1, f"{op}: {found}"
