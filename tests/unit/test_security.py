"""Nothing in the package, the scripts or the Space unpickles, or runs code that comes with data."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder in ("hb_ssl", "scripts", "space", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.py")
)
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
RUNNERS = {"eval", "exec", "compile", "__import__"}


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr], int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {word.arg: word.value for word in node.keywords if word.arg}
            yield ast.unparse(node.func), keywords, node.lineno


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def dangers(source: str) -> list[str]:
    """One entry for every place in ``source`` that could run code from data."""
    found = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"imports {n}" for n in names if n.split(".")[0] in UNPICKLERS]
    for name, keywords, line in calls(tree):
        last = name.split(".")[-1]
        if name in RUNNERS:
            found.append(f"line {line}: {name}()")
        if name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
            found.append(f"line {line}: torch.load without weights_only=True")
        if "trust_remote_code" in keywords and not is_constant(
            keywords["trust_remote_code"], False
        ):
            found.append(f"line {line}: trust_remote_code")
        if "allow_pickle" in keywords and not is_constant(keywords["allow_pickle"], False):
            found.append(f"line {line}: allow_pickle")
        if last in ("load", "load_all", "unsafe_load", "full_load") and "yaml" in name:
            found.append(f"line {line}: {name}(), expected yaml.safe_load()")
        if "shell" in keywords and not is_constant(keywords["shell"], False):
            found.append(f"line {line}: a shell")
        if name in ("os.system", "os.popen", "tempfile.mktemp"):
            found.append(f"line {line}: {name}()")
        if last == "extractall" or name == "shutil.unpack_archive":
            found.append(f"line {line}: {name}(), expected safe_extract_zip()")
        if last == "from_pretrained" and is_constant(keywords.get("use_safetensors"), False):
            found.append(f"line {line}: weights other than safetensors")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_no_code_comes_with_data(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)", "yaml.load(text)", "eval(text)",
        "subprocess.run(command, shell=True)", "archive.extractall(folder)",
        "Model.from_pretrained(folder, use_safetensors=False)",
    ],
)  # fmt: skip
def test_each_danger_is_seen(source: str) -> None:
    assert len(dangers(source)) == 1


def test_every_model_is_loaded_from_safetensors() -> None:
    """transformers would take a pickled ``pytorch_model.bin`` where safetensors are missing."""
    for path in SOURCES:
        for name, keywords, line in calls(ast.parse(path.read_text(encoding="utf-8"))):
            owner = name.split(".")[0].lower()
            if name.endswith(".from_pretrained") and "model" in owner and "peft" not in owner:
                assert is_constant(keywords.get("use_safetensors"), True), f"{path}:{line}"
