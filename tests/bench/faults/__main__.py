"""The command of the fault study: `python -m tests.bench.faults --help`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.bench.faults.study import main

if __name__ == "__main__":
    main()
