"""The network in MLX: vision tower, projector, backbone. Knows no files, no text and no pictures, only arrays."""

from .. import backend

backend.require()
