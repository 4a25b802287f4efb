"""Checks that MuJoCo can render here and says which GL renderer does it: `python -m launch.check_gl`."""

from __future__ import annotations

import sys


def main() -> int:
    """Prints the renderer in use; returns 1 with the reason if there is none."""
    from actors.envs.gl import check_gl

    try:
        print(f"[setup] rendering with {check_gl()}")
    except RuntimeError as error:
        print(f"[setup] {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
