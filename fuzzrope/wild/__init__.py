"""Libraries that others wrote, as targets: one adapter a file, named and described in ``fuzzrope/targets/wild.py``.

An adapter imports only torch and its library, so that ``fuzzrope repro`` can paste it into a script. It does two
things and says both: it brings our arguments into the library's layout, and it allows for what the library
documents or plainly means to do otherwise (its *declared departures*). A case outside a library's domain is
answered by ``eager``, so that it accuses nobody; it shows nothing about the library either.
"""
