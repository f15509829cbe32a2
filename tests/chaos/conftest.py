from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from chaos_site import FOLDERS

sys.path.extend(map(str, FOLDERS))
