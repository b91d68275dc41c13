"""One module for each ``nima`` subcommand of the training half; each holds a typer app ``app``."""
