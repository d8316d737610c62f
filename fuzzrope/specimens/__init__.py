"""Deliberately flawed RoPE kernels, each with one flaw that really happened, named in its docstring.

They are what the fuzzer is tested against: a check that finds none of them is no check. All but the
unfused baseline depart in one place from :mod:`.tiled`, which is right.
"""
