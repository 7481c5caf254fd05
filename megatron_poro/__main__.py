"""`python -m megatron_poro` is `poro`: ranks are started this way, so they need no script on the PATH."""

import sys

from megatron_poro.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
