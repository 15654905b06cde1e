"""The service: requests over HTTP, answered in batches by a `Recommender`."""
