import os

# Triton's interpreter must be chosen before Triton is imported: test_interpreter.py runs these files, each in a process
# of its own.
if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
