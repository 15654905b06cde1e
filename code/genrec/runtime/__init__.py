"""How a stage runs: command line, files that are whole, artefacts with their facts, errors in one line."""
