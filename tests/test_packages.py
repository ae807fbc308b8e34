"""Who may import whom: notebooks → companion → robust_features; nothing points back."""

import ast
import re
import subprocess
import sys
import tomllib

from companion.paths import LIBRARY

PROJECTS = ("companion", "dvc", "papermill", "nbconvert", "nbformat", "jupyter", "pandas", "ruamel")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_the_method_imports_no_part_of_the_project_nor_what_runs_it():
    files = sorted((LIBRARY / "robust_features").rglob("*.py"))
    assert len(files) > 20
    assert not [(path.name, name) for path in files for name in imports(path) if name in PROJECTS]


def test_the_method_alone_installs_what_it_imports_and_nothing_else():
    files = (LIBRARY / "robust_features").rglob("*.py")
    imported = {name for path in files for name in imports(path)} - {*sys.stdlib_module_names, "robust_features"}
    project = tomllib.loads((LIBRARY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    needs = {re.split("[><=]", need)[0] for need in project["dependencies"]}
    assert needs == imported - {"pydantic_core"}, "the latter comes with pydantic"


def test_what_the_project_imports_is_asked_for_by_name():
    """Not brought along by something else, which may stop doing so."""
    files = (LIBRARY / "companion").rglob("*.py")
    imported = {name.lower() for path in files for name in imports(path)}
    imported -= {*sys.stdlib_module_names, "companion", "robust_features", "pydantic_core"}
    project = tomllib.loads((LIBRARY.parent / "pyproject.toml").read_text("utf-8"))["project"]
    needs = {
        re.split("[><=]", need)[0] for need in project["dependencies"] + project["optional-dependencies"]["project"]
    }
    modules = {"pillow": "pil", "ruamel.yaml": "ruamel", "scikit-learn": "sklearn", "jupyter-client": "jupyter_client"}
    assert imported <= {modules.get(name, name) for name in needs}


def test_the_method_is_importable_without_the_project(tmp_path):
    (tmp_path / "robust_features").symlink_to(LIBRARY / "robust_features")
    code = "import sys; sys.path.insert(0, '.'); sys.modules['companion'] = sys.modules['dvc'] = None\n"
    code += (
        "from robust_features import attacks, bottleneck, construction, evaluation, gaussians, inversion, training\n"
    )
    code += "print(attacks.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_running_a_notebook_imports_no_torch_beside_the_kernels():
    code = "import sys, companion.pipeline, companion.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
