"""`python -m local_llm_bridge` is the same program as `local-llm-bridge`."""

import sys

from local_llm_bridge.cli import main

sys.exit(main())
