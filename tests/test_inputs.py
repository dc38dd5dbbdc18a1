"""Which pictures are read, and how their outputs are named."""

from __future__ import annotations

import io
import os
from pathlib import Path, PurePosixPath

import pytest

from hasn_cli.batch.jobs import find_jobs, read_list
from hasn_cli.batch.journal import NAME, Journal
from hasn_cli.batch.naming import Naming, size_suffix
from hasn_cli.batch.walk import glob_matches
from hasn_cli.enlarge import Size
from hasn_cli.errors import HasnError, UsageError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A function that creates empty files below the working directory, which is empty."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def pairs(*args, **options) -> dict[str, str]:
    """The result of `find_jobs` as source → target."""
    return {str(job.source): str(job.target) for job in find_jobs(*args, **options)}


def test_an_output_lies_beside_its_input_with_a_suffix(tree):
    tree("a.jpg", "sub/b.PNG")
    assert pairs(["a.jpg", "sub/b.PNG"]) == {"a.jpg": "a_x4.jpg", "sub/b.PNG": "sub/b_x4.PNG"}


def test_an_output_folder_gets_the_plain_names(tree):
    tree("a.jpg", "b.png")
    assert pairs(["a.jpg"], "out/") == {"a.jpg": "out/a.jpg"}
    assert pairs(["a.jpg", "b.png"], "out") == {"a.jpg": "out/a.jpg", "b.png": "out/b.png"}


def test_an_output_folder_that_is_the_inputs_own_gets_suffixes(tree):
    tree("in/a.jpg")
    assert pairs(["in/a.jpg"], "in") == {"in/a.jpg": "in/a_x4.jpg"}


def test_a_single_output_name_is_taken_as_it_is(tree):
    tree("a.jpg")
    assert pairs(["a.jpg"], "large.png") == {"a.jpg": "large.png"}
    assert pairs(["a.jpg"], "-") == {"a.jpg": "-"}


def test_a_given_suffix_is_always_added(tree):
    tree("a.jpg")
    assert pairs(["a.jpg"], suffix="-large") == {"a.jpg": "a-large.jpg"}
    with pytest.raises(UsageError, match="--suffix has no effect if -o names the output file"):
        find_jobs(["a.jpg"], "b.jpg", suffix="-large")
    assert pairs(["a.jpg"], "out/", suffix="-large") == {"a.jpg": "out/a-large.jpg"}


def test_the_format_changes_the_ending_only_if_necessary(tree):
    tree("a.jpeg", "b.png", "c.JPG")
    assert pairs(["a.jpeg", "b.png", "c.JPG"], "out", format="jpeg") == {
        "a.jpeg": "out/a.jpeg",
        "b.png": "out/b.jpg",
        "c.JPG": "out/c.JPG",
    }


def test_a_file_without_an_ending_is_named_by_its_content(tree):
    Path("scan").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    Path("v1.2").write_bytes(b"GIF89a and so on")
    assert pairs(["scan", "v1.2"]) == {"scan": "scan_x4.jpg", "v1.2": "v1.2_x4.gif"}


@pytest.mark.parametrize(
    ("size", "suffix"),
    [
        (Size(factor=2), "_x2"),
        (Size(factor=1.5), "_x1.5"),
        (Size(width=800), "_w800"),
        (Size(height=600), "_h600"),
        (Size(width=800, height=600), "_800x600"),
        (Size(fit=(1080, 1920)), "_1920x1080"),
        (Size(megapixels=8), "_8mp"),
    ],
)
def test_the_suffix_tells_the_size_and_is_recognised(tree, size, suffix):
    assert size_suffix(size) == suffix
    tree("in/a.jpg", f"in/a{suffix}.jpg")
    assert list(pairs(["in"])) == ["in/a.jpg"]


def test_folders_are_read_in_natural_order(tree):
    tree(*(f"in/p{number}.png" for number in (10, 9, 100, 1)))
    assert list(pairs(["in"])) == ["in/p1.png", "in/p9.png", "in/p10.png", "in/p100.png"]


def test_recursion_keeps_the_tree(tree):
    tree("in/a.png", "in/2/b.png", "in/10/deep/c.png")
    assert list(pairs(["in"])) == ["in/a.png"]
    assert pairs(["in"], "out", recursive=True) == {
        "in/2/b.png": "out/2/b.png",
        "in/10/deep/c.png": "out/10/deep/c.png",
        "in/a.png": "out/a.png",
    }


def test_several_folders_keep_their_names_in_the_output(tree):
    tree("x/a.png", "y/a.png")
    assert pairs(["x", "y"], "out") == {"x/a.png": "out/x/a.png", "y/a.png": "out/y/a.png"}


def test_hidden_names_and_other_files_are_left_out(tree):
    tree("in/.a.png", "in/.git/b.png", "in/notes.txt", "in/c.png")
    assert list(pairs(["in"], recursive=True)) == ["in/c.png"]


def test_the_output_folder_inside_the_input_is_not_read(tree):
    tree("in/a.png", "in/out/a.png")
    assert list(pairs(["in"], "in/out", recursive=True)) == ["in/a.png"]


def test_own_outputs_are_left_out_of_folders_but_taken_by_name(tree):
    tree("in/a.png", "in/a_x4.png", "in/a_x2.jpg", "in/lonely_x4.png", "in/b.png", "in/b-large.png")
    told = []
    found = pairs(["in"], suffix="-large", on_skip=lambda path, reason: told.append(path))
    assert sorted(found) == ["in/a.png", "in/b.png", "in/lonely_x4.png"]
    assert sorted(told) == ["in/a_x2.jpg", "in/a_x4.png", "in/b-large.png"]
    assert pairs(["in/a_x4.png"]) == {"in/a_x4.png": "in/a_x4_x4.png"}


def test_outputs_recorded_in_the_journal_are_left_out(tree):
    tree("in/a.png", "in/enlarged.png")
    journal = Journal(Path("in"))
    journal.start(Path("in/enlarged.png"))
    journal.close()
    assert (Path("in") / NAME).exists()
    assert list(pairs(["in"])) == ["in/a.png"]


def test_include_and_exclude(tree):
    tree("in/a.png", "in/b.jpg", "in/old/c.png", "in/new/d.png", "in/new/draft-e.png")
    assert sorted(pairs(["in"], recursive=True, include=["*.png"])) == [
        "in/a.png",
        "in/new/d.png",
        "in/new/draft-e.png",
        "in/old/c.png",
    ]
    assert sorted(pairs(["in"], recursive=True, exclude=["old", "draft-*"])) == ["in/a.png", "in/b.jpg", "in/new/d.png"]
    assert sorted(pairs(["in"], recursive=True, include=["new/*"], exclude=["**/d.*"])) == ["in/new/draft-e.png"]


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("*.png", "deep/a.png", True),
        ("*.png", "a.pngx", False),
        ("deep/*.png", "deep/a.png", True),
        ("deep/*.png", "deep/er/a.png", False),
        ("**/a.png", "a.png", True),
        ("deep/**", "deep/er/a.png", True),
        ("old/", "old", True),
        ("[ab]?.png", "b1.png", True),
        ("[!ab]?.png", "b1.png", False),
        ("a[1].png", "a1.png", True),
        ("a+(b).png", "a+(b).png", True),
        ("[", "[", True),
        ("x/a[!b]c", "x/adc", True),
        ("x/a[!b]c", "x/a/c", False),
        ("x/a[+-9]c", "x/a/c", False),
    ],
)
def test_globs(glob, path, expected):
    assert glob_matches(glob, PurePosixPath(path)) is expected


@pytest.mark.parametrize("given", [{"include": ["[z-a].png"]}, {"exclude": ["old", "[]"]}], ids=str)
@pytest.mark.parametrize("place", ["in", "memory://nowhere/"])
def test_an_invalid_glob_is_a_usage_error(tree, given, place):
    pytest.importorskip("fsspec")
    tree("in/a.png")
    with pytest.raises(UsageError, match=r"\[.*\]"):
        find_jobs([place], "out", **given)


def test_links_out_of_the_tree_are_followed_only_when_asked(tree):
    tree("in/a.png", "elsewhere/b.png", "elsewhere/c.png")
    Path("in/inner.png").symlink_to("a.png")
    Path("in/outer.png").symlink_to("../elsewhere/b.png")
    Path("in/folder").symlink_to("../elsewhere")
    Path("in/broken.png").symlink_to("nothing.png")
    told = []
    jobs = find_jobs(["in"], recursive=True, on_skip=lambda path, reason: told.append(path))
    assert sorted(job.name for job in jobs if not job.problem) == ["in/a.png", "in/inner.png"]
    (broken,) = [job for job in jobs if job.problem]
    assert broken.name == "in/broken.png" and "nothing.png, which does not exist" in str(broken.problem)
    assert sorted(told) == ["in/folder", "in/outer.png"]
    followed = [job.name for job in find_jobs(["in"], recursive=True, follow_links=True) if not job.problem]
    assert sorted(followed) == ["in/a.png", "in/folder/b.png", "in/folder/c.png", "in/inner.png", "in/outer.png"]


def test_circular_links_are_not_followed_endlessly(tree):
    tree("in/sub/a.png")
    Path("in/sub/up").symlink_to("..")
    assert list(pairs(["in"], recursive=True, follow_links=True)) == ["in/sub/a.png"]


def test_a_link_to_itself_does_no_harm(tree):
    tree("in/a.png")
    for name in ("in/self", "in/self.png"):
        Path(name).symlink_to(Path(name).name)
    told = []
    picture, good = find_jobs(["in"], "out", recursive=True, on_skip=lambda path, reason: told.append(path))
    assert told == ["in/self"]
    assert picture.name == "in/self.png" and "symbolic links" in str(picture.problem)
    assert good.source == Path("in/a.png") and good.problem is None
    (good,) = find_jobs(["in"], "out", recursive=True, include=["a.*"])
    assert good.source == Path("in/a.png")


def test_a_link_named_as_input_is_followed(tree):
    tree("elsewhere/b.png")
    Path("b.png").symlink_to("elsewhere/b.png")
    assert pairs(["b.png"]) == {"b.png": "b_x4.png"}


@pytest.mark.parametrize(
    "name",
    ["-v.png", "--help.png", "two words.png", "zß水🍌.png", "e\u0301.png", "\u00e9.png", "new\nline.png", "a'b\".png"],
)
def test_any_file_name_works(tree, name):
    tree(f"in/{name}")
    stem = name.removesuffix(".png")
    assert pairs(["in"], "out") == {f"in/{name}": f"out/{name}"}
    assert pairs([f"in/{name}"]) == {f"in/{name}": f"in/{stem}_x4.png"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_not_unicode_works(tree):
    tree(os.fsdecode(b"in/caf\xe9.png"))
    assert [os.fsencode(job.target) for job in find_jobs(["in"], "out")] == [b"out/caf\xe9.png"]


def test_two_writers_of_one_output_are_refused(tree):
    tree("in/a.jpg", "in/a.png")
    with pytest.raises(UsageError, match=r"in/a\.jpg and in/a\.png would both be written to out/a\.png"):
        find_jobs(["in"], "out", format="png")


def test_two_writers_are_found_through_a_link(tree):
    tree("in/a.png", "in/a.jpg")
    Path("same").symlink_to("in")
    with pytest.raises(UsageError, match="both"):
        find_jobs(["in/a.png", "same/a.jpg"], format="png")


def test_no_output_overwrites_an_input(tree):
    tree("a.png", "a_x4.png")
    with pytest.raises(UsageError, match=r"the output of a\.png would overwrite .*a_x4\.png, which is an input"):
        find_jobs(["a.png", str(Path("a_x4.png").absolute())])
    with pytest.raises(UsageError, match="would overwrite"):
        find_jobs(["a.png"], "a.png")
    with pytest.raises(UsageError, match="would overwrite"):
        find_jobs(["a.png"], suffix="")


def test_no_output_overwrites_an_input_through_a_link(tree):
    tree("a.png")
    os.link("a.png", "hard.png")
    Path("soft.png").symlink_to("a.png")
    for name in ("hard.png", "soft.png"):
        with pytest.raises(UsageError, match="would overwrite"):
            find_jobs(["a.png"], name)


def test_an_output_that_is_a_link_to_another_is_a_file_of_its_own(tree):
    tree("in/a.png", "in/b.png", "out/a.png")
    Path("out/b.png").symlink_to("a.png")
    assert len(find_jobs(["in"], "out")) == 2


def test_outputs_that_share_their_content_by_hard_links_are_written_apart(tree):
    tree("in/a.png", "in/b.png", "out/a.png")
    os.link("out/a.png", "out/b.png")
    assert len(find_jobs(["in"], "out")) == 2


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_url_of_this_machine_is_a_path(tree, scheme):
    pytest.importorskip("fsspec")
    tree("in/a.png", "in/b.png")
    here = Path.cwd().as_posix()
    expected = {f"{here}/in/a.png": f"{here}/out/a.png", f"{here}/in/b.png": f"{here}/out/b.png"}
    assert pairs([f"{scheme}://{here}/in"], f"{scheme}://{here}/out") == expected
    assert pairs([f"{scheme}://{here}/in/a.png"], f"{scheme}://{here}/out/") == {
        f"{here}/in/a.png": f"{here}/out/a.png"
    }
    assert pairs([], "out/", listed=[f"{scheme}://{here}/in/a.png"]) == {f"{here}/in/a.png": "out/a.png"}
    assert all(isinstance(job.source, Path) for job in find_jobs([f"{scheme}://{here}/in"]))


def test_no_output_overwrites_an_input_through_a_url(tree):
    pytest.importorskip("fsspec")
    tree("a.png")
    with pytest.raises(UsageError, match="would overwrite"):
        find_jobs(["a.png"], f"file://{Path.cwd().as_posix()}/a.png")
    with pytest.raises(UsageError, match="would overwrite"):
        find_jobs(["memory://shop/a.png"], "memory:///shop/a.png")


def test_the_same_picture_named_twice_is_done_once(tree):
    tree("in/a.png", "in/b.png")
    jobs = find_jobs(["in", "in/a.png", "in/../in/b.png"], "out")
    assert [str(job.source) for job in jobs] == ["in/a.png", "in/b.png"]


def test_an_unusable_input_becomes_a_job_with_a_problem(tree):
    tree("a.png", "texts/notes.txt", "deep/er/b.png")
    jobs = find_jobs(["gone.png", "a.png", "texts", "deep"], "out")
    problems = {job.name: str(job.problem) for job in jobs if job.problem}
    assert problems == {
        "gone.png": "gone.png: no such file",
        "texts": "texts: no pictures in this folder",
        "deep": "deep: no pictures in this folder",
    }
    assert [job.index for job in jobs] == [0, 1, 2, 3]


def test_a_folder_that_contains_only_own_outputs_is_reported(tree):
    tree("out/a.png", "out/b.png")
    journal = Journal(Path("out"))
    journal.start(Path("out/a.png")), journal.start(Path("out/b.png"))
    journal.close()
    (job,) = find_jobs(["out"])
    assert "all pictures in this folder are outputs of hasn" in str(job.problem)
    assert "name the files" in job.problem.hint
    assert len(find_jobs(["out/a.png", "out/b.png"])) == 2


def test_no_input_is_a_usage_error(tree):
    with pytest.raises(UsageError, match="no input"):
        find_jobs([])


def test_several_inputs_need_a_folder(tree):
    tree("a.png", "b.png", "file.png")
    with pytest.raises(UsageError, match="is a file"):
        find_jobs(["a.png", "b.png"], "file.png")
    with pytest.raises(UsageError, match="written to stdout"):
        find_jobs(["a.png", "b.png"], "-")
    with pytest.raises(UsageError, match="names one picture"):
        find_jobs(["a.png", "b.png"], "new.png")
    assert find_jobs(["a.png", "b.png"], "new.png/")[0].target == Path("new.png/a.png")


def test_an_output_name_without_a_known_ending_needs_a_format(tree):
    tree("a.png")
    with pytest.raises(UsageError, match="no ending"):
        find_jobs(["a.png"], "large")
    assert pairs(["a.png"], "large", format="png") == {"a.png": "large"}


def test_the_standard_input_goes_to_the_standard_output(tree):
    assert pairs(["-"]) == {"-": "-"}
    assert pairs(["-"], "out/") == {"-": "out/stdin.png"}
    assert pairs(["-"], "out/", format="jpeg") == {"-": "out/stdin.jpg"}


def test_a_list_keeps_relative_paths_below_the_output(tree):
    tree("x/a.png", "y/a.png")
    outside = Path("x/a.png").absolute()
    assert pairs([], "out", listed=["x/a.png", "./y/a.png"]) == {"x/a.png": "out/x/a.png", "y/a.png": "out/y/a.png"}
    assert pairs([], "out/", listed=[str(outside)]) == {str(outside): "out/a.png"}
    assert pairs([], "out/", listed=["x/../y/a.png"]) == {"x/../y/a.png": "out/a.png"}


def test_a_folder_in_a_list_keeps_its_relative_path_too(tree):
    tree("x/a.png", "y/deep/a.png", "z/b.png")
    found = pairs([], "out/", listed=["x", "./y/deep", "z/b.png"])
    assert found == {"x/a.png": "out/x/a.png", "y/deep/a.png": "out/y/deep/a.png", "z/b.png": "out/z/b.png"}
    outside = [str(Path(name).absolute()) for name in ("x", "y/deep")]
    assert list(pairs([], "out", listed=outside).values()) == ["out/x/a.png", "out/deep/a.png"]
    assert pairs([], "out", listed=["x/../y/deep"]) == {"x/../y/deep/a.png": "out/a.png"}


def test_one_folder_in_a_list_counts_as_several_files(tree):
    tree("x/a.png")
    assert pairs([], "new", listed=["x"]) == {"x/a.png": "new/x/a.png"}
    assert pairs([], "new", listed=["."], recursive=True) == {"x/a.png": "new/x/a.png"}
    with pytest.raises(UsageError, match="written to stdout"):
        find_jobs([], "-", listed=["x"])


def test_a_folder_called_dash_in_a_list_is_a_folder(tree):
    tree("-/a.png")
    assert pairs([], "new", listed=["-"]) == {"-/a.png": "new/-/a.png"}


def test_a_dash_in_a_list_is_a_file(tree):
    Path("-").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert pairs([], listed=["-"]) == {"-": "-_x4.png"}
    assert isinstance(find_jobs([], listed=["-"])[0].source, Path)


def test_lists_by_line_and_by_nul(tree, monkeypatch):
    Path("list").write_bytes("a b.png\n\nzß水.png\r\n".encode())
    assert read_list("list") == ["a b.png", "zß水.png"]
    Path("list0").write_bytes(b"new\nline.png\0-v.png\0caf\xe9.png\0")
    assert read_list("list0", null=True) == ["new\nline.png", "-v.png", os.fsdecode(b"caf\xe9.png")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x.png\n")))
    assert read_list("-") == ["x.png"]
    with pytest.raises(UsageError, match="No such file"):
        read_list("gone")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is closed to the administrator")
def test_an_unreadable_folder_is_reported_and_the_rest_is_done(tree):
    tree("in/a.png", "in/closed/b.png")
    Path("in/closed").chmod(0)
    told = []
    assert list(pairs(["in"], recursive=True, on_skip=lambda path, reason: told.append(path))) == ["in/a.png"]
    assert told == ["in/closed"]


def test_urls_are_listed_and_named(tree):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("a10.png", "a9.png", "sub/b.png", "notes.txt", ".hidden.png"):
        memory.pipe_file(f"/shop/{name}", b"x")
    try:
        assert pairs(["memory://shop/a9.png"]) == {"memory://shop/a9.png": "memory://shop/a9_x4.png"}
        assert pairs(["memory://shop"], "memory://out") == {
            "memory://shop/a9.png": "memory://out/a9.png",
            "memory://shop/a10.png": "memory://out/a10.png",
        }
        assert "memory://shop/sub/b.png" in pairs(["memory://shop"], "memory://out", recursive=True)
        assert pairs(["memory://shop/a9.png"], "out/") == {"memory://shop/a9.png": "out/a9.png"}
    finally:
        memory.rm("/shop", recursive=True)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A function that creates empty files below `memory://bucket`."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def make(*names: str) -> None:
        for name in names:
            memory.pipe_file(f"/bucket/{name}", b"")

    yield make
    memory.rm("/bucket", recursive=True)


def test_an_unreachable_store_fails_alone_and_is_named(tree, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def isdir(self, path):
        raise OSError("nobody answers")

    monkeypatch.setattr(MemoryFileSystem, "isdir", isdir)
    tree("z.png")
    lost, there = find_jobs(["memory://shop/a.png", "z.png"], "out/")
    assert str(lost.problem) == "memory://shop/a.png: cannot be reached (nobody answers)"
    assert there.problem is None and str(there.target) == "out/z.png"


def test_a_store_of_an_unknown_kind_fails_alone(tree):
    tree("z.png")
    lost, there = find_jobs(["nowhere://x/a.png", "z.png"], "out/")
    assert "nowhere://x/a.png: " in str(lost.problem) and there.problem is None
    with pytest.raises(HasnError, match="nowhere://out"):
        find_jobs(["z.png"], "nowhere://out/")


def test_several_folders_at_urls_keep_their_names_too(bucket, tree):
    bucket("x/a.png", "y/a.png")
    tree("z/a.png")
    assert pairs(["memory://bucket/x", "memory://bucket/y/", "z"], "memory://bucket/out") == {
        "memory://bucket/x/a.png": "memory://bucket/out/x/a.png",
        "memory://bucket/y/a.png": "memory://bucket/out/y/a.png",
        "z/a.png": "memory://bucket/out/z/a.png",
    }


@pytest.mark.parametrize("key", ["/etc/x.png", "sub//x.png", "../x.png", "sub/../../x.png", "./x.png", "..\\x.png"])
def test_a_key_that_is_not_a_path_below_its_folder_is_skipped_and_reported(bucket, tree, key):
    from fsspec.implementations.memory import MemoryFileSystem

    bucket("in/a.png")
    odd = f"/bucket/in/{key}"
    MemoryFileSystem.store[odd] = MemoryFileSystem.store["/bucket/in/a.png"]  # allowed in object stores only
    told = []
    try:
        found = pairs(["memory://bucket/in"], "out/", recursive=True, on_skip=lambda path, reason: told.append(path))
    finally:
        del MemoryFileSystem.store[odd]
    assert found == {"memory://bucket/in/a.png": "out/a.png"}
    assert told == [f"memory://bucket/in/{key}"]


@pytest.mark.parametrize("output", ["out/", "memory://bucket/out/"])
@pytest.mark.parametrize("relative", ["/etc/x.png", "../x.png", "a/../../x.png"])
def test_no_output_leaves_the_output_folder_whatever_its_input_is_called(tree, output, relative):
    pytest.importorskip("fsspec")
    naming = Naming(output, ["memory://bucket/a.png"], [], None, "_x4", None)
    with pytest.raises(UsageError, match="outside"):
        naming.target("memory://bucket/a.png", PurePosixPath(relative))


def test_own_outputs_are_left_out_of_a_folder_at_a_url(bucket):
    bucket("in/a.png", "in/a_x4.png", "in/a_x2.jpg", "in/lonely_x4.png", "in/sub/a_x4.png")
    told = []
    found = pairs(["memory://bucket/in"], recursive=True, on_skip=lambda path, reason: told.append(path))
    assert sorted(found) == [f"memory://bucket/in/{name}" for name in ("a.png", "lonely_x4.png", "sub/a_x4.png")]
    assert sorted(told) == [f"memory://bucket/in/{name}" for name in ("a_x2.jpg", "a_x4.png")]


def test_the_output_folder_inside_a_folder_at_a_url_is_not_read(bucket):
    bucket("in/a.png", "in/out/a.png", "in/outer/b.png")
    for output in ("memory://bucket/in/out", "memory:///bucket/in/out/"):
        found = pairs(["memory://bucket/in"], output, recursive=True)
        assert sorted(found) == ["memory://bucket/in/a.png", "memory://bucket/in/outer/b.png"]


def test_outputs_recorded_in_the_journal_of_a_url_are_left_out(bucket):
    bucket("in/a.png", "in/sub/b.png")
    jobs = find_jobs(["memory://bucket/in"], suffix="-big", recursive=True)
    journals = {root: Journal(root) for root in {job.root for job in jobs}}
    for job in jobs:
        journals[job.root].start(job.target, job.source)
        bucket(job.target.removeprefix("memory://bucket/"))
    for journal in journals.values():
        journal.close()
    # without the suffix, only the journal shows that they are outputs
    found = pairs(["memory://bucket/in"], recursive=True)
    assert sorted(found) == ["memory://bucket/in/a.png", "memory://bucket/in/sub/b.png"]


def test_a_folder_with_only_outputs_at_a_url_can_be_the_input_of_another_run(bucket):
    bucket("in/a.png")
    (job,) = find_jobs(["memory://bucket/in"], "memory://bucket/out")
    journal = Journal(job.root)
    journal.done(job.target, {"source": job.source})
    journal.close()
    bucket("out/a.png")
    assert list(pairs(["memory://bucket/out"], "memory://bucket/larger")) == ["memory://bucket/out/a.png"]


def test_a_folder_at_a_url_without_pictures_is_a_job_with_its_problem(bucket):
    bucket("texts/notes.txt", "deep/er/a.png", "own/a-big.png")
    journal = Journal("memory://bucket/own")
    journal.start("memory://bucket/own/a-big.png")
    journal.close()
    folders = [f"memory://bucket/{name}" for name in ("texts", "deep", "own", "gone/")]
    jobs = find_jobs(folders, "memory://bucket/out")
    assert [job.name for job in jobs] == folders
    assert all("no pictures in this folder" in str(jobs[index].problem) for index in (0, 1, 3))
    assert "-r" in jobs[1].problem.hint and "are outputs of hasn" in str(jobs[2].problem)


def test_an_empty_name_is_refused_and_does_not_mean_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match="empty"):
        find_jobs([""])


@pytest.mark.parametrize("path", ["x" * 300 + ".png", os.devnull])
def test_an_unreachable_input_is_one_job_that_fails(tmp_path, path):
    (tmp_path / "a.png").touch()
    bad, good = find_jobs([path, str(tmp_path / "a.png")], tmp_path / "out")
    assert bad.problem is not None and good.problem is None


def test_a_list_with_nul_bytes_needs_its_option_and_a_byte_order_mark_is_ignored(tmp_path):
    (tmp_path / "list").write_bytes(b"a.png\0b.png\0")
    with pytest.raises(UsageError, match="NUL"):
        read_list(str(tmp_path / "list"))
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbfa.png\r\nb.png\n")
    assert read_list(str(tmp_path / "list")) == ["a.png", "b.png"]


@pytest.mark.parametrize("suffix", ["/../x", "a\\b", "\n"])
def test_a_suffix_that_cannot_be_part_of_a_name_is_refused(tmp_path, suffix):
    (tmp_path / "a.png").touch()
    with pytest.raises(UsageError, match="suffix"):
        find_jobs([str(tmp_path / "a.png")], suffix=suffix)


def test_a_folder_with_only_outputs_can_be_the_input_of_another_run(tmp_path):
    from hasn_cli.batch.journal import Journal

    journal = Journal(tmp_path)
    for name, source in (("own.png", tmp_path / "in.png"), ("elsewhere.png", tmp_path.parent / "in.png")):
        (tmp_path / name).touch()
        journal.done(tmp_path / name, {"source": str(source)})
    journal.close()
    assert [Path(job.source).name for job in find_jobs([tmp_path], tmp_path / "out")] == ["elsewhere.png"]
