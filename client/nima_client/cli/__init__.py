"""The ``nima`` command line."""
