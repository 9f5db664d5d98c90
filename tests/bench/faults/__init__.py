"""Fault study: how often verdicts and preflight are right, on real photos, on drawn dogs and on injected faults.

`make faults` runs it; `python -m tests.bench.faults --help` lists its parts.
"""
