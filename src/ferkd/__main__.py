"""``python -m ferkd`` is the ``ferkd`` command."""

from ferkd.cli import main

main()
