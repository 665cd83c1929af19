"""The command line. Each command turns arguments into one call; `main.py` lists them."""
