import ast

from sample_report import make_project

from companion.report import contents, library


def test_the_librarys_page_has_every_public_class_and_function(tmp_path, monkeypatch):
    make_project(tmp_path, monkeypatch)
    html = library.render(contents.load_run()).read_text("utf-8")
    assert "companion." not in html, "which is the project, not the method"
    for path in library.SOURCE.rglob("*.py"):
        for node in library.public(ast.parse(path.read_text("utf-8"))):
            assert f'<h3 id="{library.module(path)}.{node.name}">' in html
    assert "wilson(hits: int, n: int) → Interval" in html and "&gt;&gt;&gt; found = wilson(95, 100)" in html


def test_a_signature_is_what_one_would_write():
    source = (
        "class A:\n x: int = 1\n def __call__(self, y, *, z: float=2): 'doc'\n @property\n def p(self) -> str: 'doc'"
    )
    (node,) = ast.parse(source).body
    assert [library.signature(each) for each in (node, *library.public(node))] == [
        *("A(x: int = 1)", "__call__(y, *, z: float=2)", "p → str")
    ]
