"""Speed of the kernels beside their peers, on a GPU: ``fuzzrope bench``.

Campaigns never import a target; here it is different: this room runs the code that it measures in its own process,
because that code is trusted and a time taken from outside would be another. So it is a program by itself
(``python -m fuzzrope.bench``), which the command line starts in its place and no other room imports.
"""
