"""As Ansible does it: the roles' modules can be imported, and their module_utils appear in ansible.module_utils."""

import sys
from pathlib import Path

import ansible.module_utils

for role in sorted((Path(__file__).resolve().parents[2] / "roles").iterdir()):
    ansible.module_utils.__path__.append(str(role / "module_utils"))
    sys.path.append(str(role / "library"))
