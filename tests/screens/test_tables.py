from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cytolake.screens.plate import ScreenError
from cytolake.screens.tables import read_header, read_table
from cytolake.storage.source_folder import SourceFolder


@pytest.fixture
def read(tmp_path):
    def read_content(content, name="t.csv"):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(SourceFolder(tmp_path), name, "s")

    return read_content


ROWS = [{"well": "B02", "gene": "TP53"}, {"well": "B03", "gene": "NFκB, α"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'well,gene\nB02,TP53\nB03,"NFκB, α"\n'),
        ("t.csv", "well;gene\nB02;TP53\nB03;NFκB, α\n"),
        ("t.tsv", "well\tgene\nB02\tTP53\nB03\tNFκB, α\n"),
        ("t.txt", "well\tgene\nB02\tTP53\nB03\tNFκB, α\n"),
        ("t.csv", '\ufeff well ,gene\r\n B02,TP53 \r\n\r\nB03,"NFκB, α"'),
        ("t.csv", 'well,gene,,\nB02,TP53,,\n,,,\nB03,"NFκB, α",,\n'),
        ("t.csv", '\n\nwell;gene\nB02;TP53\nB03;"NFκB, α"\n'),
        ("t.csv", '\ufeff,,\r\n \r\nwell,gene\r\nB02,TP53\r\nB03,"NFκB, α"\r\n'),
        ("t.csv", 'well;"gene"\nB02;TP53\nB03;"NFκB, α"\n'),
        ("t.csv", "\ufeffsep=;\nwell;gene\nB02;TP53\nB03;NFκB, α\n"),
        ("t.csv", "well\tgene\nB02\tTP53\nB03\tNFκB, α\n"),
        ("t.txt", 'well,gene\nB02,TP53\nB03,"NFκB, α"\n'),
        ("t.csv", "well\tgene\r\nB02\tTP53\r\nB03\tNFκB, α\r\n".encode("utf-16")),
        ("t.csv.gz", gzip.compress('well,gene\nB02,TP53\nB03,"NFκB, α"\n'.encode(), mtime=0)),
    ],
)
def test_one_table_in_many_spellings_is_one_table(read, name, content):
    columns, rows, problems = read(content, name)
    assert problems == []
    assert columns[:2] == ["well", "gene"]
    assert [{key: value for key, value in row.cells.items() if key} for row in rows] == ROWS


def test_a_comma_in_quotes_parts_no_cells(read):
    columns, rows, _ = read('well;"compound, as bought";dose\nB02;taxol;1\n')
    assert columns == ["well", "compound, as bought", "dose"]
    assert rows[0].cells == {"well": "B02", "compound, as bought": "taxol", "dose": "1"}


def test_a_line_that_names_the_delimiter_counts_as_a_line(read):
    assert [row.line for row in read("sep=;\nwell;gene\nB02;TP53\n")[1]] == [3]


def test_a_parquet_table_reads_as_its_csv_would(read, tmp_path):
    table = pa.table(
        {
            "well": ["B02", None],
            "plate": pa.array([20115.0, None]),  # pandas makes whole numbers with a gap floats
            "dose": pa.array([0.1, 2.0], pa.float32()),
            "is_control": [True, False],
            "list": [[1], [2]],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    columns, rows, problems = read((tmp_path / "t.parquet").read_bytes(), "t.parquet")
    assert columns == ["well", "plate", "dose", "is_control"] == read_header(SourceFolder(tmp_path), "t.parquet", "s")
    assert [tuple(row.cells.values()) for row in rows] == [("B02", "20115", "0.1", "True"), ("", "", "2", "False")]
    assert problems == []


def test_a_file_that_is_no_parquet_is_refused(read):
    with pytest.raises(ScreenError, match=r"t\.parquet: unreadable file"):
        read("well,gene\n", "t.parquet")


def test_a_short_row_has_empty_cells_and_rows_know_their_lines(read):
    _, rows, problems = read("a,b,c\n1\n\n1,2,3,,\n1,2,3,4\n")
    assert [(problem.problem, problem.found) for problem in problems] == [("ragged_row", "4 cells in line 5")]
    assert [(row.line, row.cells) for row in rows] == [
        (2, {"a": "1", "b": "", "c": ""}),
        (4, {"a": "1", "b": "2", "c": "3"}),
    ]


def test_the_header_is_read_without_the_rows(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"well,gene\nB02,x\n")
    assert read_header(SourceFolder(tmp_path), "t.csv", "s") == ["well", "gene"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.csv", b"well,\xff\xfe\n", "unreadable_file"),
        ("t.csv", b"a,a\n", "duplicate_column"),
        ("t.csv", b'a,"' + b"x" * 200_000 + b'"\n', "unreadable_file"),
        ("t.csv.gz", b"no gzip", "unreadable_file"),
        ("t.csv.gz", gzip.compress(b"a,b\n" * 1000, mtime=0)[:-10], "unreadable_file"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_by_its_name(read, name, content, problem):
    with pytest.raises(ScreenError, match=name) as caught:
        read(content, name)
    assert caught.value.problems[0].problem == problem


def test_a_packed_table_that_unpacks_without_end_is_refused(read, monkeypatch):
    monkeypatch.setattr("cytolake.screens.tables.TABLE_BYTES_MAX", 1 << 20)
    with pytest.raises(ScreenError, match="bytes when unpacked"):
        read(gzip.compress(b"\0" * (1 << 22), mtime=0), "t.csv.gz")


@pytest.mark.parametrize(("name", "problem"), [("no.csv", "missing_file"), ("../t.csv", "path_outside_screen")])
def test_a_table_that_is_not_there_or_not_the_screens_is_reported(tmp_path, name, problem):
    (tmp_path / "t.csv").write_text("a\n")
    (tmp_path / "screen").mkdir()
    with pytest.raises(ScreenError) as caught:
        read_table(SourceFolder(tmp_path / "screen"), name, "s")
    assert caught.value.problems[0].problem == problem


def test_a_table_in_another_encoding_is_refused_with_its_line_and_text(read):
    with pytest.raises(ScreenError, match=r"line 2 .*B1;Caf\xe9.*CSV UTF-8"):
        read("well;gene\nB1;Caf\xe9;\n".encode("cp1252"))


@pytest.mark.parametrize("content", [b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0rest"])
def test_a_workbook_is_refused_as_one(read, content):
    with pytest.raises(ScreenError, match="workbook"):
        read(content, "map.xlsx")
