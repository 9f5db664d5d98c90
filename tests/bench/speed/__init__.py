"""Speed of runs, sweeps and fine-tunes beside what else one would do, on the same photos and batches, in one process.

Run: make bench. FULL=1 measures runs on thousands of photos without any extrapolation, and resumes.
"""
