"""How `--quiet` reaches whatever shows progress, in this process and its children."""

from __future__ import annotations

QUIET = "VMPRUNE_QUIET"  # an environment variable; any value but an empty one
