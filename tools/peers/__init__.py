"""Parts of tools/compare_peers.py."""
