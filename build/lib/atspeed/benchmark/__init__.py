"""The decoding methods side by side: running, recording, reporting."""
