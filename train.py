"""Trains with llm-foundry by a YAML: `composer train.py CONFIG.yaml [key=value ...]`; -h says more.

It is `patch_algorithm.train`, which every installation has: `composer -m patch_algorithm.train CONFIG.yaml`.
"""

from __future__ import annotations

import sys

from patch_algorithm.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "train.py"))
