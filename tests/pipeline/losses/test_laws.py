"""Laws of every loss: precision, safety, invariance, gradients and refusals."""

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config
from support.toy_logits import CLASSES, ROWS, gradient_of, random_logits
from support.tree import ROOT
from torch import Tensor, nn

import logitstore
from logitstore.pipeline import losses
from logitstore.pipeline.stream.batch import TopKTensors, decode_top_k
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LABELS = torch.arange(ROWS) % CLASSES
TEMPERATURES = (0.5, 1.0, 20.0, 1000.0)


def distillation(temperature: float, hard_weight: float) -> Loss:
    """Distillation as a function of the teacher's logits, like the others."""
    loss = losses.Distillation(temperature, hard_weight)
    return lambda z, v, labels: loss(z, losses.soft_targets(v, temperature), labels)


def standardised(temperature: float, hard_weight: float) -> Loss:
    """The use that the paper of logit standardisation makes of it."""
    loss = distillation(temperature, 0.0)
    return lambda z, v, labels: (
        loss(losses.standardise(z), losses.standardise(v), labels)
        + hard_weight * losses.hard_cross_entropy(z, labels, 0.1)
    )


def ensemble(temperature: float, hard_weight: float) -> Loss:
    """Of two teachers, whose logits are mixed first."""
    loss = losses.DecoupledDistillation(temperature, hard_weight=hard_weight)
    return lambda z, v, labels: loss(
        z, losses.ensemble_logits({"a": v, "b": v.flip(0)}, temperature, {"a": 3.0, "b": 1.0}), labels
    )


ALL: dict[str, Callable[[float, float], Loss]] = {
    "distillation": distillation,
    "standardised distillation": standardised,
    "logit matching": lambda _, hard_weight: losses.LogitMatching(hard_weight),
    "DKD": lambda t, hard_weight: losses.DecoupledDistillation(t, hard_weight=hard_weight),
    "DKD of an ensemble": ensemble,
    "DIST": lambda t, hard_weight: losses.Dist(t, hard_weight=hard_weight),
}
every_loss = pytest.mark.parametrize("name", ALL)


@every_loss
@pytest.mark.parametrize("hard_weight", [0.0, 0.5])
def test_of_no_rows_a_loss_is_nought_with_a_gradient_of_nought(name: str, hard_weight: float) -> None:
    """A rank's share of a step may be empty, and the others wait for it in the backward pass."""
    weight = torch.ones(3, 4, requires_grad=True)
    none = torch.zeros(0, 3) @ weight
    loss = ALL[name](2.0, hard_weight)(none, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None and not weight.grad.any()


# Precision ---------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_autocast_changes_no_bit(name: str, temperature: float) -> None:
    loss = ALL[name](temperature, 0.3)
    for dtype in (torch.float32, torch.float64):
        z, v = random_logits(16).to(dtype), random_logits(17).to(dtype)

        def both(z: Tensor = z, v: Tensor = v) -> tuple[Tensor, Tensor]:
            leaf = z.clone().requires_grad_()
            value = loss(leaf, v, LABELS)
            return value.detach(), torch.autograd.grad(value, leaf)[0]

        outside = both()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = both()
            assert (z.float() @ v.float().T).dtype == torch.bfloat16  # negative control: autocast is on
        for plain, cast in zip(outside, inside, strict=True):
            assert cast.dtype == dtype and torch.equal(plain, cast)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_first(name: str, dtype: torch.dtype) -> None:
    loss = ALL[name](4.0, 0.3)
    z, v = random_logits(16).to(dtype), random_logits(17).to(dtype)
    value = loss(z, v, LABELS)
    assert value.dtype == torch.float32 and torch.equal(value, loss(z.float(), v.float(), LABELS))


# Safety ------------------------------------------------------------------------------------------

EXTREMES = torch.tensor(
    [
        [1e4, -1e4, 0.0, 0.0],  # all but one-hot
        [0.0, 0.0, 0.0, 0.0],  # constant
        [7.3, 7.3, 7.3, 7.3],
        [-1e4, -1e4, -1e4, -9.9e3],
        [1e4, 1e4, 1e4, 1e4],
        [0.0, 1e-3, 0.0, 0.0],  # all but constant
        [-1e4, 1e4, -1e4, -1e4],
    ]
)


@every_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite(name: str, temperature: float, dtype: torch.dtype) -> None:
    """Every extreme row of the student against every one of the teacher, with every label and without."""
    loss = ALL[name](temperature, 0.5)
    for shift in range(len(EXTREMES)):
        for label in (-1, 0, 1, 3):
            z = EXTREMES.to(dtype).requires_grad_()
            v = EXTREMES.roll(shift, 0).to(dtype)
            value = loss(z, v, torch.full((len(z),), label))
            (gradient,) = torch.autograd.grad(value, z)
            assert value.isfinite() and gradient.isfinite().all(), (shift, label)


@every_loss
def test_a_large_vocabulary_stays_finite(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    z = (5 * torch.randn(3, 150_000, generator=random)).requires_grad_()
    value = ALL[name](2.0, 0.5)(
        z, 5 * torch.randn(3, 150_000, generator=random), torch.tensor([0, -1, 149_999])
    )
    (gradient,) = torch.autograd.grad(value, z)
    assert value.isfinite() and gradient.isfinite().all() and gradient.any()


# Invariance and minimum --------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_constant_of_a_row_is_not_seen(name: str, temperature: float) -> None:
    loss = ALL[name](temperature, 0.3)
    z, v = random_logits(1), random_logits(2)
    constants = torch.linspace(-50, 50, ROWS, dtype=torch.float64)[:, None]
    expected, gradient = loss(z, v, LABELS), gradient_of(lambda leaf: loss(leaf, v, LABELS), z)
    for moved_z, moved_v in ((z + constants, v), (z, v + constants), (z - constants, v + 3 * constants)):
        torch.testing.assert_close(loss(moved_z, moved_v, LABELS), expected, rtol=1e-7, atol=1e-7)
        moved = gradient_of(lambda leaf, v=moved_v: loss(leaf, v, LABELS), moved_z)
        torch.testing.assert_close(moved, gradient, rtol=1e-6, atol=1e-8 * temperature**2)


PERFECT = ("logit matching", "DKD", "DIST")


@pytest.mark.parametrize("name", PERFECT)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_a_perfect_student_costs_nothing(name: str, temperature: float) -> None:
    v = random_logits(3)
    loss = ALL[name](temperature, 0.0)
    for dtype, precision in ((torch.float64, 1e-13), (torch.float32, 1e-6)):
        teacher = v.to(dtype)
        student = teacher + torch.linspace(-4, 4, ROWS)[:, None].to(dtype).round()
        scale = 1.0 if name == "logit matching" else temperature**2
        assert abs(float(loss(student, teacher, LABELS))) <= 20 * precision * scale


@every_loss
@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_the_teacher_is_the_minimum(name: str, temperature: float) -> None:
    v = random_logits(4, rows=64)
    loss = ALL[name](temperature, 0.0)
    labels = LABELS[:64]
    best = v
    if name == "DKD of an ensemble":
        best = losses.ensemble_logits({"a": v, "b": v.flip(0)}, temperature, {"a": 3.0, "b": 1.0})
    least = float(loss(best, v, labels))
    assert gradient_of(lambda leaf: loss(leaf, v, labels), best).abs().max() < 1e-6
    for seed in range(5):
        noise = random_logits(seed + 20, rows=64)
        for size in (1e-2, 1.0):
            assert float(loss(best + size * noise, v, labels)) > least
            assert float(loss(best + size * noise * torch.tensor([[1.0]] + [[0.0]] * 63), v, labels)) > least


# Gradients ---------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_are_those_of_finite_differences(name: str, temperature: float) -> None:
    loss = ALL[name](temperature, 0.4)
    z, v = random_logits(5, rows=5, classes=4).requires_grad_(), random_logits(6, rows=5, classes=4)
    labels = torch.tensor([0, 3, -1, 2, 2])
    assert torch.autograd.gradcheck(lambda leaf: loss(leaf, v, labels) / temperature, (z,))


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_no_loss_breaks_a_compiled_graph_in_two(unchecked: None) -> None:
    every = [make(3.0, 0.4) for make in ALL.values()]
    z, v = random_logits(7, rows=8).float(), random_logits(8, rows=8).float()

    def values(z: Tensor, v: Tensor, labels: Tensor) -> Tensor:
        return torch.stack([loss(z, v, labels) for loss in every])

    torch.compiler.reset()
    compiled = torch.compile(values, fullgraph=True, backend="eager")
    assert torch.equal(compiled(z, v, LABELS[:8]), values(z, v, LABELS[:8]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@every_loss
def test_no_loss_waits_for_the_accelerator(name: str) -> None:
    loss = ALL[name](3.0, 0.4)
    z, v = random_logits(7).float(), random_logits(8).float()
    on_device = z.cuda().requires_grad_(), v.cuda(), LABELS.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss(*on_device)
            value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(value) == pytest.approx(float(loss(z, v, LABELS)), rel=1e-4)


# k = C -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> logitstore.Store:
    """The same logits as float16, as the C largest and as the 3 largest."""
    logits = random_logits(9).float().numpy()
    path = tmp_path_factory.mktemp("losses") / "store"
    made = logitstore.create_store(
        path, num_rows=ROWS, num_classes=CLASSES, digests=np.arange(ROWS, dtype=np.uint64)
    )
    for name, encoding in {"dense": "float16", "all": {"top_k": CLASSES}, "some": {"top_k": 3}}.items():
        with made.capture(name, provenance={}, encoding=encoding) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, logits[rows.start : rows.stop])
    return logitstore.open_store(path)


def decoded(store: logitstore.Store, name: str, temperature: float) -> Tensor:
    stored = store.teachers[name].read_stored(slice(None))
    arrays = (torch.from_numpy(stored[array]) for array in ("index", "logits", "tail"))
    return decode_top_k(TopKTensors(*arrays, num_classes=CLASSES), temperature)


@every_loss
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_c_largest_of_c_logits_are_all_of_them(
    name: str, temperature: float, store: logitstore.Store
) -> None:
    loss = ALL[name](temperature, 0.3)
    z = random_logits(10).float()
    dense = torch.from_numpy(store.teachers["dense"].read(slice(None)))

    def both(v: Tensor) -> tuple[Tensor, Tensor]:
        return loss(z, v, LABELS), gradient_of(lambda leaf: loss(leaf, v, LABELS), z)

    value, gradient = both(dense)
    value_of_all, gradient_of_all = both(decoded(store, "all", temperature))
    assert torch.equal(value_of_all, value) and torch.equal(gradient_of_all, gradient)
    _, gradient_of_some = both(decoded(store, "some", temperature))
    assert not torch.allclose(gradient_of_some, gradient, rtol=1e-2)  # negative control


# What is refused ---------------------------------------------------------------------------------


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Annotations go unchecked, as they do outside of tests."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


MODULES: dict[str, Callable[..., nn.Module]] = {
    "temperature": lambda value: losses.Distillation(value),
    "temperature of DKD": lambda value: losses.DecoupledDistillation(value),
    "temperature of DIST": lambda value: losses.Dist(value),
    "hard_weight": lambda value: losses.Distillation(1.0, value),
    "hard_weight of logit matching": lambda value: losses.LogitMatching(value),
    "hard_weight of DKD": lambda value: losses.DecoupledDistillation(1.0, hard_weight=value),
    "hard_weight of DIST": lambda value: losses.Dist(hard_weight=value),
    "alpha": lambda value: losses.DecoupledDistillation(1.0, alpha=value),
    "beta": lambda value: losses.DecoupledDistillation(1.0, beta=value),
    "inter": lambda value: losses.Dist(inter=value),
    "intra": lambda value: losses.Dist(intra=value),
}


@pytest.mark.parametrize("argument", MODULES)
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_numbers_that_make_no_sense_are_named(argument: str, value: float) -> None:
    name = argument.split()[0]
    limit = "above 0" if name == "temperature" else "of 0 or more"
    with pytest.raises(ConfigError) as caught:
        MODULES[argument](value)
    assert str(caught.value) == f"{name}: expected a finite number {limit}, found {value}; correct {name}"


def test_weights_of_nought_are_taken() -> None:
    losses.DecoupledDistillation(1.0, alpha=0.0, beta=0.0, hard_weight=0.0)
    losses.Dist(inter=0.0, intra=0.0, hard_weight=0.0)
    losses.LogitMatching(0.0)


Z = torch.zeros(4, 3)
Y = torch.zeros(4, dtype=torch.int64)
CODES = torch.zeros(4, 3, dtype=torch.uint8)
THREE: dict[str, Loss] = {
    "LogitMatching": losses.LogitMatching(0.1),
    "DecoupledDistillation": losses.DecoupledDistillation(1.0),
    "Dist": losses.Dist(),
}
DECODE = "; decode them first: `batch.teacher_logits(temperature)`, or a stream with decode=True"
TOGETHER = "; check that labels and logits belong together"


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            (Z, torch.zeros(1, 3), Y),
            BadLogitsError,
            (
                "teacher_logits: expected the shape of the student's logits, (4, 3), found (1, 3); "
                "give both the same rows and classes"
            ),
        ),
        (
            (torch.zeros(3), torch.zeros(3), Y),
            BadLogitsError,
            "student_logits: expected the shape (rows, classes), found (3,); reshape them",
        ),
        (
            (Z, CODES, Y),
            BadLogitsError,
            f"teacher_logits: expected floating logits, found torch.uint8 codes, as they are stored{DECODE}",
        ),
        (
            (CODES, Z, Y),
            BadLogitsError,
            f"student_logits: expected floating logits, found torch.uint8 codes, as they are stored{DECODE}",
        ),
        (
            (Z, {"wide": Z, "deep": Z}, Y),
            BadLogitsError,
            (
                "teacher_logits: expected the logits of 1 teacher, found the logits of 2 teachers; "
                "combine them first: `ensemble_logits(batch.logits, temperature)`"
            ),
        ),
        (
            (Z, Z, Y[:3]),
            BadDataError,
            f"labels: expected int64 of shape (4,), one a row, found int64 of shape (3,){TOGETHER}",
        ),
        (
            (Z, Z, torch.zeros(4)),
            BadDataError,
            f"labels: expected int64 of shape (4,), one a row, found float32 of shape (4,){TOGETHER}",
        ),
        (
            (Z, Z, torch.tensor([0, 1, -1, 3])),
            BadDataError,
            f"labels: expected classes from 0 to 2, or -1 where unknown, found 3{TOGETHER}",
        ),
        (
            (Z, Z, torch.tensor([0, -2, -1, 2])),
            BadDataError,
            f"labels: expected classes from 0 to 2, or -1 where unknown, found -2{TOGETHER}",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    name: str, arguments: tuple[Tensor, Tensor, Tensor], kind: type[Exception], message: str, unchecked: None
) -> None:
    with pytest.raises(kind) as caught:
        THREE[name](*arguments)
    assert str(caught.value) == message


def test_losses_that_need_labels_say_so(unchecked: None) -> None:
    for loss, needed, remedy in (
        (losses.LogitMatching(0.1), "a hard_weight of 0.1", "or set hard_weight to 0"),
        (losses.Dist(), "a hard_weight of 1.0", "or set hard_weight to 0"),
        (losses.Distillation(1.0, 0.1), "a hard_weight of 0.1", "or set hard_weight to 0"),
        (
            losses.DecoupledDistillation(1.0, hard_weight=0.0),
            "decoupled distillation",
            "or use `Distillation`, which needs none",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            loss(Z, Z)
        assert str(caught.value) == (
            f"labels: expected labels, for {needed}, found labels=None; pass them (-1 where unknown), {remedy}"
        )
    losses.LogitMatching()(Z, Z)
    losses.Dist(hard_weight=0.0)(Z, Z)


def test_distillation_does_not_broadcast_its_targets(unchecked: None) -> None:
    with pytest.raises(
        BadLogitsError, match=r"^targets: expected the shape of the student's logits, \(4, 3\)"
    ):
        losses.Distillation(1.0)(Z, torch.full((1, 3), 1 / 3))
    with pytest.raises(BadLogitsError, match=r"^targets: expected floating logits, found torch.uint8 codes"):
        losses.Distillation(1.0)(Z, CODES)
    with pytest.raises(
        BadDataError, match=r"^labels: expected classes from 0 to 2, or -1 where unknown, found 3; "
    ):
        losses.hard_cross_entropy(Z, torch.full((4,), 3))


def test_decoupled_distillation_needs_another_class() -> None:
    with pytest.raises(
        BadLogitsError,
        match=r"^student_logits: expected 2 or more classes, found 1; use another loss, such as `Distillation`$",
    ):
        losses.DecoupledDistillation(1.0)(torch.zeros(4, 1), torch.zeros(4, 1), Y)


def test_codes_that_nobody_decoded_are_no_logits(unchecked: None) -> None:
    """Their order is upside down: the softmax of raw codes would be a quiet disaster."""
    for mean in ("arithmetic", "geometric"):
        for combine in (losses.soft_targets, losses.ensemble_logits):
            with pytest.raises(BadLogitsError, match=r"expected floating logits, found torch.uint8 codes"):
                combine({"wide": CODES.float(), "deep": CODES}, 2.0, mean=mean)
    for take in (losses.soften, losses.soft_targets, losses.ensemble_logits):
        with pytest.raises(BadLogitsError, match="decode them first"):
            take(CODES, 2.0)
    rows = TopKTensors(CODES, CODES.half(), torch.zeros(4, 3), 9)
    with pytest.raises(
        BadLogitsError, match="expected floating logits, found TopKTensors, as they are stored"
    ):
        losses.soft_targets({"wide": rows}, 2.0)
    for take in (losses.standardise, lambda codes: losses.hard_cross_entropy(codes, Y)):
        with pytest.raises(BadLogitsError, match="decode them first"):
            take(CODES)


# The page ----------------------------------------------------------------------------------------


def test_the_example_of_the_page_runs_and_its_table_has_every_loss(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    script = tmp_path / "example.py"
    collected = re.sub(r"^loss = (.*)$", r"every.append(\1)", example, flags=re.MULTILINE)
    script.write_text(f"every = []\n{collected}", encoding="utf-8")
    every = runpy.run_path(str(script))["every"]
    assert len(every) == 4 and all(loss.isfinite() and loss.requires_grad for loss in every)
    table = page[page.index("| loss |") : page.index("```python")]
    for name in ("Distillation", "LogitMatching", "DecoupledDistillation", "Dist", "hard_cross_entropy"):
        assert f"| `{name}(" in table
