"""`python -m finetune`, and `accelerate launch -m finetune train ...` on several processes."""

import sys

from finetune.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
