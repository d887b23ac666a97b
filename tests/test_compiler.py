"""All of it in one call: from a model to a bundle that runs by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

import prunepass
from prunepass.analyse.flops import macs
from prunepass.apply import apply_plan, apply_with_records
from prunepass.backends.eager import EagerBackend, EagerEngine
from prunepass.backends.protocol import Backend, Engine
from prunepass.bundle import read_manifest, read_plan
from prunepass.compiler import Compiled, assemble
from prunepass.engines import load_engines
from prunepass.errors import BackendError, PlanError, UsageError
from prunepass.plans import Plan
from prunepass.stages import Clock
from tests.conftest import Captured
from tests.tiny_models import images, tiny

FLOAT = torch.float32


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """Backend -> a bundle of one model; the model itself is gone."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for backend in ("onnx", "eager"):
        model = tiny("class").to(FLOAT)
        made[backend] = prunepass.compile(
            model, (images(2, dtype=FLOAT),), method="weighted-merge", flops=0.71,
            backend=backend, folder=folder / backend, weights="random", name="tiny",
        )  # fmt: skip
        del model
    return made


@pytest.fixture(scope="module")
def smaller(captured: Captured) -> ExportedProgram:
    program = captured("class", FLOAT)
    return apply_plan(program, prunepass.plan(program, method="weighted-merge", flops=0.71))


def same(engine: Engine, program: ExportedProgram, batch: int) -> None:
    x = images(batch, seed=7 + batch, dtype=FLOAT)
    expected = program.module(check_guards=False)(x)
    torch.testing.assert_close(engine(x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["onnx", "eager"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_engines_equal_their_programs_at_any_batch(
    bundles: dict[str, Compiled], captured: Captured, smaller: ExportedProgram, backend: str,
    batch: int,
) -> None:  # fmt: skip
    same(bundles[backend].engine, smaller, batch)
    same(bundles[backend].dense, captured("class", FLOAT), batch)


@pytest.mark.parametrize("backend", ["onnx", "eager"])
def test_a_bundle_holds_what_it_says(
    bundles: dict[str, Compiled], captured: Captured, smaller: ExportedProgram, backend: str
) -> None:
    made = bundles[backend]
    folder = made.folder
    assert folder is not None
    assert sorted(p.name for p in folder.iterdir()) == [
        "bundle.json", "compressed", "dense", "digests.json", "plan.json",
        *(["program"] if backend == "onnx" else []), "report.json",
    ]  # fmt: skip
    assert read_plan(folder / "plan.json") == made.plan
    report = json.loads((folder / "report.json").read_text())
    assert report == json.loads(made.report.to_json())
    assert report["macs_dense"] == macs(captured("class", FLOAT))
    assert report["macs"] == macs(smaller)
    assert report["difference"] < 1e-4
    assert report["difference_dense"] < 1e-4
    assert report["tokens"]["block[2].attention"][1] == 1
    assert set(report["seconds"]) == {
        "capture", "plan", "rewrite", "build dense", "check dense", "build compressed",
        "check compressed",
    }  # fmt: skip
    manifest = read_manifest(folder)
    assert manifest.inputs == {"images": [[0, 3, 24, 30], "float32"]}
    ((shape, kind),) = manifest.outputs.values()
    assert (shape, kind) == ([0, 11], "float32")
    assert (manifest.backend, manifest.batch, manifest.weights) == (backend, None, "random")
    assert manifest.preprocessing is None
    assert sorted(p.name for p in folder.parent.iterdir()) == ["eager", "onnx"]


def test_bundles_load_again(bundles: dict[str, Compiled], smaller: ExportedProgram) -> None:
    for made in bundles.values():
        assert made.folder is not None
        manifest, engines = load_engines(
            made.folder, threads=2 if made.folder.name == "onnx" else None
        )
        assert manifest.model == "tiny"
        same(engines["compressed"], smaller, 3)


def test_a_fresh_process_without_model_libraries_runs_it(bundles: dict[str, Compiled]) -> None:
    code = (
        "import sys\n"
        "for name in ('timm', 'transformers', 'torchvision'): sys.modules[name] = None\n"
        "from pathlib import Path; import torch\n"
        "from prunepass.engines import load_engines\n"
        "for folder in sys.argv[1:]:\n"
        "    engines = load_engines(Path(folder))[1]\n"
        "    print([list(e(torch.ones(3, 3, 24, 30))[0].shape) for e in engines.values()])\n"
    )
    folders = [str(made.folder) for made in bundles.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[[3, 11], [3, 11]]\n" * 2


def test_a_fixed_batch(tmp_path: Path, captured: Captured) -> None:
    stages: list[str] = []
    made = prunepass.compile(
        captured("class", FLOAT), (images(2, dtype=FLOAT),), method="tome", flops=0.71,
        backend="eager", folder=tmp_path / "b", batch=3, on_stage=stages.append,
    )  # fmt: skip
    assert stages == [
        "capture",
        "plan",
        "rewrite",
        "build dense",
        "check dense",
        "build compressed",
        "check compressed",
    ]
    assert made.report.batch == 3
    manifest = read_manifest(tmp_path / "b")
    assert manifest.batch == 3
    same(made.engine, apply_plan(captured("class", FLOAT), made.plan), 3)
    with pytest.raises(Exception, match="3"):
        made.engine(images(4, dtype=FLOAT))


@pytest.mark.slow
def test_aot_inductor(tmp_path: Path, captured: Captured, smaller: ExportedProgram) -> None:
    made = prunepass.compile(
        captured("class", FLOAT), (images(2, dtype=FLOAT),), flops=0.71, backend="aot_inductor",
        folder=tmp_path / "b",
    )  # fmt: skip
    for batch in (1, 2, 5):
        same(made.engine, smaller, batch)


@dataclass(frozen=True)
class Off:
    """An engine whose outputs are off by a factor for the examples from `first` on."""

    engine: Engine
    factor: float
    first: int
    path: Path | None = None

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = tuple(x.clone() for x in self.engine(*inputs))
        for x in outputs:
            x[self.first :] *= self.factor
        return outputs


@dataclass(frozen=True)
class OffBackend:
    """The eager backend with engines that are off in one part of the bundle."""

    part: str
    factor: float
    first: int = 0
    eager: EagerBackend = field(default_factory=EagerBackend)
    name: str = "eager"

    def unavailable(self) -> str | None:
        return None

    def build(self, program: ExportedProgram, folder: Path) -> Engine:
        self.eager.build(program, folder)
        return self.load(folder)

    def load(self, folder: Path) -> Engine:
        engine: EagerEngine = self.eager.load(folder)
        return Off(engine, self.factor, self.first) if folder.name == self.part else engine


@pytest.fixture(scope="module")
def parts(captured: Captured) -> tuple[ExportedProgram, ExportedProgram, Plan]:
    program = captured("mean", FLOAT)
    plan = prunepass.plan(program, method="key-norm", flops=0.9)
    return program, apply_with_records(program, plan)[0], plan


def put_together(
    parts: tuple[ExportedProgram, ExportedProgram, Plan], backend: Backend, folder: Path
) -> Compiled:
    program, rewritten, plan = parts
    return assemble(
        program, rewritten, plan, [], backend, folder, clock=Clock(None), batch=None,
        force=False, name="tiny", weights="random", preprocessing=None,
    )  # fmt: skip


@pytest.mark.parametrize("factor", [1.001, float("nan")])
@pytest.mark.parametrize("part", ["dense", "compressed"])
def test_an_engine_that_disagrees_is_refused(
    parts: tuple[ExportedProgram, ExportedProgram, Plan], tmp_path: Path, part: str, factor: float
) -> None:
    with pytest.raises(BackendError, match=f"the {part} engine disagrees") as caught:
        put_together(parts, OffBackend(part, factor), tmp_path / "b")
    assert caught.value.exit_code == 3
    assert caught.value.found is not None
    assert list(tmp_path.iterdir()) == []


def test_a_dense_engine_may_not_be_off_in_one_example(
    parts: tuple[ExportedProgram, ExportedProgram, Plan], tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="the dense engine disagrees"):
        put_together(parts, OffBackend("dense", 1.5, first=1), tmp_path / "b")


def test_a_backend_of_ones_own(
    parts: tuple[ExportedProgram, ExportedProgram, Plan], tmp_path: Path
) -> None:
    made = put_together(parts, OffBackend("dense", 1.0 + 1e-6), tmp_path / "b")
    assert 1e-7 < made.report.difference_dense < 1e-5


def test_the_whole_budget_gives_the_same_engine(tmp_path: Path, captured: Captured) -> None:
    made = prunepass.compile(
        captured("mean", FLOAT), (images(2, dtype=FLOAT),), flops=1.0, backend="eager",
        folder=tmp_path / "b",
    )  # fmt: skip
    assert made.report.macs_ratio == 1.0
    x = images(4, dtype=FLOAT)
    assert torch.equal(made.engine(x)[0], made.dense(x)[0])


def test_refusals_before_any_work(tmp_path: Path, captured: Captured) -> None:
    program, x = captured("class", FLOAT), (images(2, dtype=FLOAT),)
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists"):
        prunepass.compile(program, x, flops=0.71, backend="eager", folder=tmp_path / "there")
    with pytest.raises(UsageError, match="unknown backend"):
        prunepass.compile(program, x, flops=0.71, backend="tensor", folder=tmp_path / "b")
    with pytest.raises(UsageError, match="unknown method"):
        prunepass.compile(
            program, x, method="tme", flops=0.71, backend="eager", folder=tmp_path / "b"
        )
    with pytest.raises(PlanError):
        prunepass.compile(program, x, flops=1.5, backend="eager", folder=tmp_path / "b")
    foreign = Plan(method="tome", steps=(), fingerprint="another")
    with pytest.raises(PlanError, match="another model"):
        prunepass.compile(program, x, plan=foreign, backend="eager", folder=tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]
