"""Triton's interpreter at twice its speed."""

import functools
import inspect


def hasten() -> None:
    """The interpreter replaces the functions of triton.language by its own when a kernel is launched, and does it again
    at each call of a jitted function within: that takes half of its time, and changes nothing. Here a launch does it
    once for each module that its functions use. A Triton without these internals is left as it is."""
    from triton.runtime import interpreter

    if not all(hasattr(interpreter, name) for name in ("_patch_lang", "_LangPatchScope")):
        return
    launch, patch, language = interpreter.GridExecutor.__call__, interpreter._patch_lang, interpreter.tl
    patched: set[int] = set()

    @functools.cache
    def used(function):
        modules = (value for value in function.__globals__.values() if inspect.ismodule(value))
        return frozenset(id(module) for module in modules if module in (language, language.core))

    def launch_anew(*args, **kwargs):
        patched.clear()  # the launch before has put the functions back
        return launch(*args, **kwargs)

    def patch_once(function):
        if patched and used(function) <= patched:
            return interpreter._LangPatchScope()
        patched.update(used(function))
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_once
