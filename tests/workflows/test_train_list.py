"""Lists of images: what can be written in them, what is refused, and how they are split."""

from pathlib import Path

import pytest

from unziplora_cli.errors import UsageError
from unziplora_cli.workflows.train_list import Row, read_list, rows_of_images, take_shard


def written(folder: Path, text: str, name: str = "list.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


def test_csv_cells_get_the_types_of_their_settings(tmp_path):
    text = (
        "File,Subject,style,name,steps,content-lr,block separation,precision,destyle\n"
        'fox.png,"red fox, asleep",ink,rot,400,1e-4,no,bf16,photos\n'
        "\n"
        "sub/Cat 1.png,cat,,,,,,,none\n"
    )
    fox, cat = read_list(written(tmp_path, text))
    assert (fox.file, fox.name) == (tmp_path / "fox.png", "rot")
    assert fox.texts == {"subject": "red fox, asleep", "style": "ink"}
    assert fox.settings == {
        "steps": 400,
        "content_lr": 1e-4,
        "block_separation": False,
        "precision": "bf16",
        "destyle": str(tmp_path / "photos"),
    }
    assert type(fox.settings["steps"]) is int
    assert (cat.where, cat.file, cat.name) == ("list.csv, line 4", tmp_path / "sub/Cat 1.png", "cat-1")
    assert (cat.texts, cat.settings) == ({"subject": "cat"}, {"destyle": "none"})


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", "sep=;\r\nfile;subject\r\nfox.png;Füchsin, rot\r\n", "utf-8-sig"),  # and as it exports it
        ("a.csv", "file;subject\r\nfox.png;Füchsin, rot\r\n", "utf-8-sig"),  # as Excel saves it in Germany
        ("a.tsv", "file\tsubject\nfox.png\tFüchsin, rot\n", "utf-8"),
        ("a.csv", 'file,subject\rfox.png,"Füchsin, rot"\r', "utf-8"),  # as old versions of Excel on a Mac
        ("a.TOML", 'steps = 5\n[[image]]\nfile = "fox.png"\nsubject = "Füchsin, rot"\n', "utf-8"),
    ],
)
def test_lists_as_other_programs_write_them(tmp_path, name, text, encoding):
    (row,) = read_list(written(tmp_path, text, name, encoding))
    assert row.file == tmp_path / "fox.png"
    assert row.texts == {"subject": "Füchsin, rot"}
    assert row.settings == ({"steps": 5} if "TOML" in name else {})


def test_separators_of_unicode_end_no_row(tmp_path):
    (row,) = read_list(written(tmp_path, "file,subject\nfox\u2028\x85.png,red\u2029fox\n"))
    assert (row.file.name, row.texts) == ("fox\u2028\x85.png", {"subject": "red\u2029fox"})


def test_an_absolute_path_stays_and_a_table_wins_over_the_keys_above_it(tmp_path):
    text = 'rank = 8\nstyle = "ink"\n[[image]]\nfile = "/a/fox.png"\n[[image]]\nfile = "cat.png"\nrank = 4\n'
    fox, cat = read_list(written(tmp_path, text, "a.toml"))
    assert fox.file == Path("/a/fox.png")
    assert [row.settings["rank"] for row in (fox, cat)] == [8, 4]
    assert cat.with_defaults({"style": "oil", "trigger": "sks"}, {"rank": 2, "steps": 9}) == Row(
        "a.toml, image 2",
        tmp_path / "cat.png",
        "cat",
        {"style": "ink", "trigger": "sks"},
        {"rank": 4, "steps": 9},
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file,sbject\nfox.png,fox\n", "Unknown key 'sbject' in a.csv. Did you mean 'subject'?"),
        ("a.csv", "file,rank,rank\nfox.png,4,4\n", "two columns 'rank'"),
        ("a.csv", "subject\nfox\n", "no column 'file'"),
        ("a.csv", "file,rank\nfox.png,many\n", "a.csv, line 2: rank must be a number, not 'many'"),
        ("a.csv", "file,rank\nfox.png,nan\n", "a.csv, line 2: rank must be a whole number"),
        ("a.csv", "file,rank\nfox.png,0\n", "a.csv, line 2: rank is 0, but must be from 1 to 1024"),
        ("a.csv", "file,fuse\nfox.png,maybe\n", "fuse must be true or false"),
        ("a.csv", "file,name\nfox.png,../fox\n", "is not a valid project name"),
        ("a.csv", "file,subject\nfox.png,fox,ink\n", "a.csv, line 2 has 3 cells"),
        ("a.csv", "file,subject\n,fox\n", "a.csv, line 2: There is no file"),
        ("a.csv", 'file,subject\n"fox.png,fox\n', "not valid CSV"),
        (
            "a.csv",
            "file\nfox.png\nsub/fox.jpg\n",
            "a.csv, line 2 and a.csv, line 3 would both create the project 'fox'",
        ),
        ("a.csv", "file\n", "has no images"),
        ("a.csv", "", "has no images"),
        ("a.toml", "[[image]]\nfile = 3\n", "a.toml, image 1: file must be text"),
        (
            "a.toml",
            '[[image]]\nfile = "a.png"\nrank = "8"\n',
            "a.toml, image 1: rank must be a whole number, not '8'",
        ),
        (
            "a.toml",
            'lr-warmup-steps = "1"\n[[image]]\nfile = "a.png"\n',
            "lr-warmup-steps must be a whole number",
        ),
        (
            "a.toml",
            '[[image]]\nfile = "a.png"\ncontent-lr = "1e-4"\n',
            "content-lr must be a number, not '1e-4'",
        ),
        (
            "a.toml",
            '[[image]]\nfile = "a.png"\nstrict-top = "no"\n',
            "strict-top must be true or false, not 'no'",
        ),
        ("a.toml", "image = 3\n", "must be a table per image"),
        ("a.toml", '[[images]]\nfile = "fox.png"\n', "Did you mean 'image'?"),
        ("a.toml", "[[image]\n", "not valid TOML"),
        ("a.xlsx", "file\n", "is no list of images"),
    ],
)
def test_what_no_training_could_use_is_refused_with_its_place(tmp_path, name, text, message):
    with pytest.raises(UsageError) as refused:
        read_list(written(tmp_path, text, name))
    assert message in refused.value.message


def test_bytes_that_are_no_text_and_missing_lists_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"file\n\xff\xfe.png\n")
    with pytest.raises(UsageError, match="UTF-8"):
        read_list(tmp_path / "a.csv")
    with pytest.raises(UsageError, match="Cannot read the list"):
        read_list(tmp_path / "missing.csv")


def test_a_folder_lists_its_images_by_name(tmp_path):
    for name in ("b.jpg", "A.PNG", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    assert [row.name for row in rows_of_images([tmp_path])] == ["a", "b"]
    (tmp_path / "b.png").touch()
    with pytest.raises(UsageError, match="would both create the project 'b'"):
        rows_of_images([tmp_path])


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 12])
def test_shards_are_disjoint_complete_and_equally_large(shards):
    rows = [Row(str(i), Path(f"{i}.png"), str(i)) for i in range(10)]
    parts = [take_shard(rows, f"{number}/{shards}") for number in range(1, shards + 1)]
    assert sorted(int(row.name) for part in parts for row in part) == list(range(10))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    longer = take_shard([*rows, Row("10", Path("10.png"), "10")], f"1/{shards}")
    assert longer[: len(parts[0])] == parts[0]  # rows that are appended move no other row


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3", "٣/4", "1/2\n"])
def test_other_shards_are_refused(shard):
    with pytest.raises(UsageError, match="is no shard"):
        take_shard([], shard)
