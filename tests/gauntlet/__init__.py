"""Candidate files in the form that models write them: bad ones with one flaw each, and good ones.

python -m tests.gauntlet --seeds 1 2 3 --json reports/baseline/gauntlet.json
"""
