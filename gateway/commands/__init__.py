"""What the larger commands of `gateway` do, a module for each. `cli.py` knows their arguments."""
