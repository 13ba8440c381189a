"""``python -m ddim``, the command without its script."""

from ddim.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
