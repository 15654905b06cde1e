"""Beam search over the token tree: beams, what may follow them, who drafts, and verification."""
