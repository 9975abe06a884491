"""`python -m dicomai` is `dicomai`."""

from dicomai.cli.main import main

main()
