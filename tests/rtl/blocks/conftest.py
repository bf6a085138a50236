"""Puts the benches on the path: cocotb imports them as modules, and so do the tests beside them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
