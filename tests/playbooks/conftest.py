"""As Ansible does it: the playbooks' modules can be imported."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "playbooks" / "library"))
