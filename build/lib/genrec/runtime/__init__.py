"""The runtime of a stage: command line, atomic files, artefact metadata and one-line error messages."""
