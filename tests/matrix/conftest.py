"""Lets failed rows show what differs."""

import pytest

pytest.register_assert_rewrite("matrix.row")
