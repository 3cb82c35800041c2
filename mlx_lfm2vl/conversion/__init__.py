"""Any checkpoint to a complete MLX folder: planned, streamed, checked, measured, repaired, uploaded.

In: a folder or repository of any layout. Out: a whole folder, or none; a report; a commit on the hub.
"""
