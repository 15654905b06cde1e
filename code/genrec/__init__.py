"""What every generative recommender needs: splits, identifiers, samples, metrics, and the stages' manners."""
