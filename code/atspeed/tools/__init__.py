"""Programs beside the four stages, each `python -m atspeed.tools.NAME`."""
