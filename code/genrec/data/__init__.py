"""A data set: splits, catalogue, samples."""
