"""What `make sanitize-cpu` runs, with the C++ kernels built for the address and undefined-behaviour sanitizers.

PyTorch itself is not instrumented; its tensors come from the sanitizer's malloc, so that an access beyond their ends is
seen where the kernels make it. What a sanitizer says goes to a file of its own for each process: a report counts also
where a test expects its child to fail.
"""
