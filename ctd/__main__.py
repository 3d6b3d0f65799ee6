"""``python -m ctd`` is the ``ctd`` command."""

import sys

from ctd.cli import main

sys.exit(main())
