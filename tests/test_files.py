"""Tables that lie as they are or compressed."""

import bz2

import pytest

from adapt.files import has_table, open_table


def test_a_table_is_read_as_it_is_or_from_its_compressed_copy(tmp_path) -> None:
    plain, text = tmp_path / "metrics.csv", "name,value\r\n\u00e9,1\r\n"
    assert not has_table(plain)
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        open_table(plain)
    (tmp_path / "metrics.csv.bz2").write_bytes(bz2.compress(text.encode()))
    assert has_table(plain)
    with open_table(plain) as file:
        assert file.read() == text
    plain.write_bytes(b"newer,1\r\n")  # what a run has just written comes first
    with open_table(plain) as file:
        assert file.read() == "newer,1\r\n"
