"""``python -m hkd`` is ``hkd``, for launchers of several processes."""

import sys

from hkd.cli import main

sys.exit(main())
