"""URIs of files on POSIX, Windows drives and network shares, there and back, all on one machine."""

from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from qupath.pictures import picture

from stqp.qupath import uris


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        (PurePosixPath("/a/b.svs"), "file:/a/b.svs"),
        (PurePosixPath("/a b/µ#?%é.svs"), "file:/a%20b/%C2%B5%23%3F%25%C3%A9.svs"),
        (PurePosixPath("/100%/a+b&c=d;e~'(f)!.svs"), "file:/100%25/a+b&c=d;e~'(f)!.svs"),
        (PurePosixPath("/日本/ß ü.svs"), "file:/%E6%97%A5%E6%9C%AC/%C3%9F%20%C3%BC.svs"),
        (PureWindowsPath("C:\\Users\\me\\a slide[1].ndpi"), "file:/C:/Users/me/a%20slide%5B1%5D.ndpi"),
        (PureWindowsPath("d:\\µ\\#1?.svs"), "file:/d:/%C2%B5/%231%3F.svs"),
        (PureWindowsPath("\\\\server\\share\\a.svs"), "file://server/share/a.svs"),
        (PureWindowsPath("\\\\10.0.0.7\\data$\\a b.svs"), "file://10.0.0.7/data$/a%20b.svs"),
        # no host to Java, which then writes it as part of the path
        (PureWindowsPath("\\\\lab_nas\\share\\a.svs"), "file:////lab_nas/share/a.svs"),
        (PureWindowsPath("\\\\wsl$\\Ubuntu\\a.svs"), "file:////wsl$/Ubuntu/a.svs"),
    ],
)
def test_there_and_back(path, uri):
    assert uris.to_uri(path) == uri
    back = uris.uri_path(uri)
    assert back == (f"/{path.as_posix()}" if path.drive[1:2] == ":" else path.as_posix())
    assert uris.to_uri(back) == uri


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("file:/a/b%20c", "/a/b c"),
        ("file:///a/b+c", "/a/b+c"),
        ("FILE:/a", "/a"),
        ("file://localhost/a", "/a"),
        ("/bare/path", "/bare/path"),
        ("/bare/50%20.svs", "/bare/50%20.svs"),
        ("C:\\bare", "/C:/bare"),
        ("C:/bare/x", "/C:/bare/x"),
        ("\\\\server\\share\\x", "//server/share/x"),
        ("file:///C:/x%20y", "/C:/x y"),
        ("file://C:/x", "/C:/x"),
        ("file:////server/share/x", "//server/share/x"),
        ("file:/é/ü.svs", "/é/ü.svs"),
        ("file:/not encoded/a#b?c", "/not encoded/a#b?c"),
        ("https://example.org/x.tif", None),
        ("omero://x/1", None),
    ],
)
def test_uris_of_others(uri, path):
    assert uris.uri_path(uri) == path


def test_names_that_are_no_unicode():
    """A file system of bytes may hold them; they come back as they were."""
    path = "/a/b\udce9.svs"
    assert uris.to_uri(PurePosixPath(path)) == "file:/a/b%E9.svs"
    assert uris.uri_path("file:/a/b%E9.svs") == path


@pytest.mark.parametrize(
    ("path", "old", "new", "result"),
    [
        ("/mnt/a/x.svs", "/mnt/a", "/data", "/data/x.svs"),
        ("/mnt/a/x.svs", "/mnt/a/", "/data/", "/data/x.svs"),
        ("/mnt/ab/x.svs", "/mnt/a", "/data", None),
        ("/mnt/A/x.svs", "/mnt/a", "/data", None),
        ("/C:/Slides/b/X.svs", "c:\\slides", "/mnt/slides", "/mnt/slides/b/X.svs"),
        ("/C:/slides/X.svs", "C:\\", "/mnt", "/mnt/slides/X.svs"),
        ("/C:/slidesX/X.svs", "C:\\slides", "/mnt", None),
        ("//SERVER/Share/x.svs", "\\\\server\\share", "/Volumes/share", "/Volumes/share/x.svs"),
        ("//server/share/x.svs", "file://server/share", "Z:\\", "/Z:/x.svs"),
        ("/mnt/s/x.svs", "/mnt/s", "\\\\nas\\s", "//nas/s/x.svs"),
        ("/a b/x.svs", "file:/a%20b", "/c", "/c/x.svs"),
        ("/mnt/a/x.svs", "/mnt/a/x.svs", "/data/y.svs", "/data/y.svs"),
    ],
)
def test_another_beginning(path, old, new, result):
    assert uris.remap(path, old, new) == result


def test_the_same_place_beside_a_project(tmp_path):
    here = tmp_path / "data" / "qupath"
    image = picture(tmp_path / "data" / "slides" / "x y.png")
    for uri, project in [
        ("file:/D:/study/slides/x%20y.png", "file:/D:/study/qupath/project.qpproj"),
        ("file:/d:/STUDY/slides/x%20y.png", "file:/D:/study/QuPath/project.qpproj"),
        ("file:////nas/lab/study/slides/x%20y.png", "file://NAS/lab/study/qupath/project.qpproj"),
        ("file:/old/study/slides/x%20y.png", "file:/old/study/qupath/project.qpproj"),
    ]:
        assert uris.resolve(uri, project, here) == image, uri
    other = uris.resolve("file:/E:/slides/x.png", "file:/D:/study/project.qpproj", tmp_path)
    assert other == Path("/E:/slides/x.png")
    assert uris.resolve("https://example.org/x.tif", None, tmp_path) is None
    assert uris.resolve("file:/nowhere/x.png", None, tmp_path) == Path("/nowhere/x.png")
