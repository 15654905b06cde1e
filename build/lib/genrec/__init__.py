"""Building blocks of generative recommenders: splits, identifiers, samples, metrics and the runtime of a stage."""
