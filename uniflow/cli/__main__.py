"""`python -m uniflow.cli`: the command `uniflow` of this interpreter, whatever is on the PATH."""

import sys

from uniflow.cli import main

if __name__ == "__main__":
    sys.exit(main())
