"""The decoding library under the name that BeamSD's users know; it is the package `beamsd`."""

from beamsd import *  # noqa: F403
