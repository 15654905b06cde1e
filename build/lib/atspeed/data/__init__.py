"""What a draft is trained on: samples, and the target's teacher data."""
