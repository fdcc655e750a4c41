"""`python -m hpacell` is the command `hpacell`."""

from hpacell.cli import main

main()
