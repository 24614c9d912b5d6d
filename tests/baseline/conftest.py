"""The package is imported as scenarios' tests import it: by its path from the top folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
