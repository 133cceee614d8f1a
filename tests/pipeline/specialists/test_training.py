"""A specialist: the generalist with a head of its own, trained on half and half, and trained once."""

import contextlib
import json
import math
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from support import idle_workers
from support.experiments import ROWS, run_document, train, write_data
from support.special import SETS, Field, content, grounds, write_pairs
from support.trainings import interruption
from torch import nn

from logitstore.pipeline.cache.teachers import load_teacher
from logitstore.pipeline.held_out import held_out_rows
from logitstore.pipeline.models.records import Models
from logitstore.pipeline.run import pending
from logitstore.pipeline.runtime.ranks import Ranks
from logitstore.pipeline.specialists import training as stage
from logitstore.pipeline.specialists.dustbin import DUSTBIN, shifts
from logitstore.pipeline.specialists.heads import (
    Corrected,
    JointDustbin,
    dustbin_row,
    find_head,
    replace_head,
    specialist_layer,
)
from logitstore.pipeline.specialists.parallel import train_in_processes
from logitstore.pipeline.specialists.todo import special_rows, table_of
from logitstore.pipeline.specialists.training import (
    ShortEpochs,
    SpecialistLoss,
    specialist_batches,
    specialist_network,
    train_specialist,
    train_specialists,
)
from logitstore.pipeline.stream.batch import TorchBatch
from logitstore.pipeline.trainer.validation import Validation
from logitstore.storage.errors import BadDataError, BadLogitsError, ConfigError


def batches_of(field: Field, number: int) -> ShortEpochs:
    """What a specialist learns from."""
    run = field.runs[number]
    return specialist_batches(field.work, run, special_rows(field.work, run))


def trained(field: Field, number: int = 0) -> bytes:
    """Train a specialist, or go on with it; its weights."""
    with mock.patch("os.fsync"):
        train_specialist(field.work, field.runs[number])
    return field.weights(number)


# The head


def test_the_head_is_the_last_linear_layer_of_as_many_outputs() -> None:
    module = nn.Sequential(
        nn.Linear(3, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)), nn.ReLU()
    )
    assert find_head(module, 5, where="it") == "2.1"
    assert find_head(module, 5, where="it", name="2.0") == "2.0"


def test_a_head_that_is_none_is_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    with pytest.raises(BadDataError) as caught:
        find_head(module, 7, where="specialist 'a-0'")
    assert str(caught.value) == (
        "specialist 'a-0': expected a Linear layer with 7 outputs, to be replaced by a specialist's, found none; "
        "let the generalist end in one, or use variant = 'full', which keeps the head"
    )
    for name, found in (("1", "a ReLU"), ("0", "a Linear with 4"), ("head", "nothing of that name")):
        with pytest.raises(ConfigError) as refused:
            find_head(module, 5, where="it", name=name)
        assert str(refused.value) == (
            f"it: head = '{name}': expected a Linear layer with 5 outputs, found {found}; name one of 2"
        )


def test_a_module_that_is_all_head_is_refused() -> None:
    with pytest.raises(BadDataError, match="a single Linear layer, which is all head"):
        replace_head(nn.Linear(3, 5), [0], 5, where="it")


@pytest.mark.parametrize("bias", [True, False])
def test_the_new_head_says_of_its_classes_what_the_old_one_said(bias: bool) -> None:
    torch.manual_seed(1)
    head, classes = nn.Linear(6, 9, bias=bias), [1, 4, 8]
    new, features = specialist_layer(head, classes), torch.randn(20, 6)
    torch.testing.assert_close(new(features)[:, :3], head(features)[:, classes])
    others = [0, 2, 3, 5, 6, 7]
    nothing = torch.zeros(1, 6)
    torch.testing.assert_close(new(nothing)[:, 3], head(nothing)[:, others].logsumexp(dim=1))
    # A tangent of a convex function is nowhere above it.
    assert (new(features)[:, 3] <= head(features)[:, others].logsumexp(dim=1) + 1e-6).all()


def test_the_dustbin_begins_with_the_slope_of_all_others() -> None:
    weight, bias = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    features = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (weight @ features + bias).logsumexp(dim=0).backward()
    row, _ = dustbin_row(weight, bias)
    torch.testing.assert_close(row, features.grad)


def _begun(field: Field, number: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A specialist as its training begins, some inputs, and the generalist's logits of them."""
    generalist = load_teacher(field.work, field.experiment.generalist)
    network = specialist_network(field.work, field.runs[number], special_rows(field.work, field.runs[number]))
    inputs = torch.from_numpy(field.rows.rows(range(10))[0])
    with torch.no_grad():
        return network, inputs, generalist(inputs)


def test_a_specialist_begins_exactly_where_its_generalist_is(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    network, inputs, known = _begun(field, 1)
    special = special_rows(field.work, field.runs[1])
    columns = np.append(special.classes, DUSTBIN)
    natural = torch.from_numpy(shifts(columns, special.classes, special.prior, special.share))
    with torch.no_grad():
        begun = network(inputs)
        found = torch.softmax(Corrected(network, natural)(inputs), dim=1)
    own = torch.softmax(known, dim=1)[:, SETS[1]]
    expected = torch.cat([own, 1 - own.sum(dim=1, keepdim=True)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    # Under the shares of a batch, where special rows are more frequent, it expects more of them.
    assert (torch.softmax(begun, dim=1)[:, -1] < expected[:, -1]).all()


def test_the_joint_logit_of_others_is_exact_where_they_are_far_below() -> None:
    others = torch.tensor([[-1e4, -1e4 - 1, 0.0, 3.0]])
    found = JointDustbin(nn.Identity(), [2, 3], 4, 0.5)(others)
    torch.testing.assert_close(found, torch.tensor([[0.0, 3.0, -1e4 + math.log(1 + math.exp(-1)) + 0.5]]))
    assert torch.isfinite(found).all()


def test_a_joint_dustbin_teaches_every_output(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    network, inputs, _ = _begun(field, 0)
    torch.nn.functional.cross_entropy(network(inputs), torch.full((10,), 2)).backward()
    gradient = network.get_parameter("network.head.bias").grad
    assert gradient is not None and (gradient != 0).all()


def test_a_generalist_without_weights_is_refused(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    with (
        mock.patch.object(stage, "load_teacher", return_value=nn.Flatten()),
        pytest.raises(BadDataError, match="expected a generalist with weights that can be trained on"),
    ):
        specialist_network(field.work, field.runs[0], special_rows(field.work, field.runs[0]))


def test_a_new_head_begins_with_the_generalists_rows(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content(variant="dustbin"))
    generalist = load_teacher(field.work, field.experiment.generalist)
    network = specialist_network(field.work, field.runs[1], special_rows(field.work, field.runs[1]))
    inputs = torch.from_numpy(field.rows.rows(range(10))[0])
    with torch.no_grad():
        torch.testing.assert_close(network(inputs)[:, :2], generalist(inputs)[:, SETS[1]])
    assert network(inputs).shape == (10, 3)
    theirs = generalist.state_dict()
    assert all(torch.equal(t, theirs[k]) for k, t in network.state_dict().items() if not k.startswith("head"))


def test_a_layer_that_does_not_give_the_logits_is_noticed(tmp_path: Path) -> None:
    document = content(variant="dustbin")
    document["teacher"][0]["args"] = {"hidden": [4, 4]}  # as many units as classes
    del document["specialists"]
    run_document(document, grounds(tmp_path), tmp_path / "other")
    field = Field(tmp_path, content(variant="dustbin", head="hidden.1") | {"teacher": document["teacher"]})
    field.work = replace(field.work, models=Models(tmp_path / "other" / "models"))
    with pytest.raises(BadLogitsError) as caught:
        specialist_network(field.work, field.runs[0], special_rows(field.work, field.runs[0]))
    assert "name the layer that gives the logits in specialists.head" in str(caught.value)


# Batches


@pytest.mark.parametrize(
    ("share", "batch", "expected"), [(0.5, 16, (8, 8)), (0.25, 16, (4, 12)), (0.5, 7, (4, 3))]
)
def test_every_batch_has_its_special_rows_and_its_others(
    tmp_path: Path, share: float, batch: int, expected: tuple[int, int]
) -> None:
    field = Field(grounds(tmp_path), content(share=share, train=train(batch_size=batch)))
    special, batches = special_rows(field.work, field.runs[0]), batches_of(field, 0)
    assert special.batch == expected and special.share == expected[0] / batch
    others = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == batches.steps == math.ceil(len(special.special) / expected[0])
        for one in found:
            is_special = np.isin(one.labels.numpy(), SETS[0])
            assert (int(is_special.sum()), int((~is_special).sum())) == expected
            assert is_special[: expected[0]].all()  # which the loss rests on
        rows = torch.cat([one.rows[: expected[0]] for one in found]).tolist()
        assert set(rows) == set(special.special.tolist())  # all of them
        assert len(rows) - len(special.special) < expected[0]  # and none again but to fill the last batch
        others.append(frozenset(torch.cat([one.rows[expected[0] :] for one in found]).tolist()))
    if share == 0.5:
        assert len(set(others)) == 3  # others each time


def test_a_stream_without_strata_is_not_half_and_half(tmp_path: Path) -> None:
    """Negative control."""
    field = Field(grounds(tmp_path, cached=1), content(cached=1))
    counts = {int(np.isin(b.labels, SETS[0]).sum()) for b in field.store.stream(16, teachers=[])}
    assert counts != {8}


def test_all_views_of_the_special_rows_are_an_epoch(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content(views="all"))
    special = special_rows(field.work, field.runs[0]).special
    batches = batches_of(field, 0)
    assert batches.steps == math.ceil(3 * len(special) / 8)
    pairs = {
        (int(row), int(view)) for b in batches for row, view in zip(b.rows[:8], b.views[:8], strict=True)
    }
    assert pairs == {(row, view) for row in special.tolist() for view in range(3)}


def test_an_epoch_that_is_gone_on_with_ends_as_it_would_have(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    whole = [b.rows.tolist() for b in batches_of(field, 0)]
    for stop in range(1, len(whole) + 1):
        begun, rest = batches_of(field, 0), batches_of(field, 0)
        begun.set_epoch(0)
        taken = iter(begun)
        head = [next(taken).rows.tolist() for _ in range(stop)]
        state = begun.state_dict()
        rest.load_state_dict(state)
        assert head + [b.rows.tolist() for b in rest] == whole


# The loss


def fake_batch(labels: list[int], logits: Any = None) -> TorchBatch:
    """A batch of these labels."""
    rows = torch.arange(len(labels))
    given = {} if logits is None else {"wide": logits}
    return TorchBatch(rows, torch.zeros_like(rows), None, torch.tensor(labels), given)


def test_labels_become_the_class_of_the_set_or_the_dustbin(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())
    special = special_rows(field.work, field.runs[0])
    loss = SpecialistLoss(table_of(field.experiment), "wide", special, 4)
    assert loss.columns(torch.tensor([0, 1, 2, 3])).tolist() == [0, 2, 1, 2]
    logits = torch.randn(4, 3)
    expected = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 2]))
    assert torch.equal(loss(logits, fake_batch([0, 2, 1, 3])), expected)


@pytest.mark.parametrize(("share", "special"), [(0.5, 2), (0.25, 1)])
def test_of_the_full_variant_others_learn_from_the_generalist(
    tmp_path: Path, share: float, special: int
) -> None:
    """Section 6.1: hard labels for special rows, soft targets for all others, and each row counts once."""
    document = content(variant="full", temperature=2.0, share=share, train=train(batch_size=4))
    field = Field(grounds(tmp_path), document)
    loss = SpecialistLoss(table_of(field.experiment), "wide", special_rows(field.work, field.runs[0]), 4)
    logits, given = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    batch = fake_batch([0, 2, 1, 3], given.float())
    hard = -(logits[:special].log_softmax(1)[range(special), [0, 2][:special]]).sum()
    targets = (given[special:].float().double() / 2).softmax(1)
    soft = -4 * (targets * (logits[special:] / 2).log_softmax(1)).sum()
    torch.testing.assert_close(loss(logits.float(), batch).double(), (hard + soft) / 4, rtol=1e-5, atol=1e-6)
    # The labels of the others have no say, nor have the generalist's logits of special rows.
    others = torch.cat([given[:special] + torch.randn(special, 4), given[special:]])
    again = fake_batch([0, 2][:special] + [3] * (4 - special), others.float())
    assert torch.equal(loss(logits.float(), batch), loss(logits.float(), again))


# Training


def test_a_specialist_learns_its_classes(tmp_path: Path) -> None:
    field = Field(
        grounds(tmp_path, cached=1), content(cached=1, train=train(epochs=30, batch_size=16, lr=5e-3))
    )
    special = special_rows(field.work, field.runs[0])
    network = specialist_network(field.work, field.runs[0], special_rows(field.work, field.runs[0]))
    inputs, labels = field.rows.rows(range(ROWS))
    targets = SpecialistLoss(table_of(field.experiment), "wide", special, 4).columns(torch.from_numpy(labels))

    def right() -> float:
        with torch.no_grad():
            return float((network.eval()(torch.from_numpy(inputs)).argmax(1) == targets).float().mean())

    before = right()
    trained(field)
    network.load_state_dict({k: v for k, v in _tensors(field, 0).items()})
    assert right() > max(before, 0.9)


def _tensors(field: Field, number: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(field.models.weights_path("specialists", field.runs[number].name))


def test_the_same_seed_gives_the_same_bytes_and_each_set_has_its_own(tmp_path: Path) -> None:
    field, again = (Field(grounds(tmp_path / n), content(seed=3)) for n in "ab")
    assert [run.seed for run in field.runs] == [3, 4]
    assert trained(field) == trained(again)
    other = Field(grounds(tmp_path / "c"), content(seed=4))
    assert trained(other) != field.weights(0)


@pytest.mark.parametrize("step", [1, 5, 7, 8, 9])
def test_a_training_that_was_interrupted_ends_in_the_same_bytes(tmp_path: Path, step: int) -> None:
    """Eight steps an epoch: within one, at its end, in the next."""
    document = content(train=train(epochs=2, batch_size=16, schedule="cosine", ema=0.9, checkpoint_every=1))
    whole = trained(Field(grounds(tmp_path / "whole"), document))
    field = Field(grounds(tmp_path / "cut"), document)
    assert batches_of(field, 0).steps == 8
    with interruption(step):
        trained(field)
    checkpoints = field.models.weights_path("specialists", "pairs-0").with_suffix(".checkpoints")
    assert checkpoints.is_dir()
    assert trained(Field(tmp_path / "cut", document)) == whole
    assert not checkpoints.exists()


@pytest.mark.parametrize("variant", ["joint", "dustbin", "full"])
def test_a_specialist_is_validated_on_rows_of_both_kinds_that_it_does_not_learn_from(
    tmp_path: Path, variant: str
) -> None:
    """In the shares of its batches; the weights of the best epoch are kept, and those of the last beside."""
    settings = train(epochs=2, batch_size=16, validation=0.2, keep="best", checkpoint_every=3)
    field = Field(grounds(tmp_path), content(variant=variant, train=settings))
    special, labels = special_rows(field.work, field.runs[0]), field.store.samples.labels
    assert set(special.held_out) <= set(held_out_rows(ROWS, 0.2))
    assert not set(special.held_out) & {*special.special, *special.others}
    own = np.isin(labels[special.held_out], SETS[0]).sum()
    assert own > 2 and 1 <= len(special.held_out) - own <= own
    with mock.patch.object(Validation, "_rank", lambda *_: (0.0, 0.0)):  # of equal epochs the first counts
        whole = trained(field)
        cut = Field(grounds(tmp_path / "cut"), content(variant=variant, train=settings))
        with interruption(9):
            trained(cut)
        assert trained(cut) == whole
    weights = field.models.weights_path("specialists", "pairs-0")
    assert weights.with_stem("pairs-0@last").read_bytes() != whole
    lines = [json.loads(line) for line in weights.with_suffix(".metrics.jsonl").read_text().splitlines()]
    told = [line for line in lines if line["event"] == "validation"]
    assert [(line["rows"], line["best"]) for line in told] == [
        (len(special.held_out), True),
        (len(special.held_out), False),
    ]
    assert all(0 <= line["accuracy"] <= 1 and line["nll"] > 0 for line in told)
    assert all(("kl" in line) == (variant == "full") for line in lines if line["event"] == "epoch")


def test_rows_without_a_label_are_no_rows_of_other_classes(tmp_path: Path) -> None:
    """As such they would be taught as the dustbin, and π, the share of special rows, would be too small."""
    write_data(tmp_path)
    with np.load(tmp_path / "train.npz") as archive:
        arrays = dict(archive)
    arrays["labels"][::3] = -1
    np.savez(tmp_path / "train.npz", **arrays)
    document = content()
    store = run_document(
        {k: v for k, v in document.items() if k != "specialists"}, tmp_path, tmp_path / "out"
    ).store
    write_pairs(store)
    field, labels = Field(tmp_path, document), store.samples.labels
    for run, classes in zip(field.runs, SETS, strict=True):
        rows = special_rows(field.work, run)
        assert set(labels[rows.special]) == set(classes)
        assert set(labels[rows.others]) == {0, 1, 2, 3} - set(classes)
        assert rows.prior == np.isin(labels, classes).sum() / (labels >= 0).sum()


def test_several_processes_train_what_one_trains(tmp_path: Path) -> None:
    """In two processes, each with one thread as here."""
    alone = Field(grounds(tmp_path / "alone"), content())
    shared = Field(grounds(tmp_path / "shared"), content(workers=2))
    told = []
    for field in (alone, shared):
        with mock.patch("os.fsync"):
            names = train_specialists(replace(field.work, progress=lambda *said: told.append(said)))
        assert names == ["pairs-0", "pairs-1"]
        assert not train_specialists(field.work)
    assert [alone.weights(n) for n in (0, 1)] == [shared.weights(n) for n in (0, 1)]
    assert told[-1][:4] == ("training 2 specialists", 2, 2, "specialists")


def test_a_process_that_trains_may_write_its_checkpoint_when_the_command_is_stopped(tmp_path: Path) -> None:
    """Else Ctrl-C of the parent, or a failure of another specialist, would cost hours of its work."""
    field = Field(grounds(tmp_path), content())

    def progress(task: str, *_: object) -> None:
        if task == "begun":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_in_processes(
            replace(field.work, progress=progress), field.runs[:1], 1, idle_workers.keeps_when_stopped
        )
    assert (field.models.folder / "pairs-0.stopped").exists()


def listening(pids: set[int]) -> set[str]:
    """Return the addresses at which processes listen, as /proc has them."""
    sockets = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(str(file.readlink()))
    found = set()
    for kind in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1])
    return found


def test_processes_that_train_open_no_port(tmp_path: Path) -> None:
    """Any user of the machine could talk to one."""
    field = Field(grounds(tmp_path), content(workers=2))
    seen: list[set[str]] = []

    def progress(*_: object) -> None:
        children = {process.pid for process in multiprocessing.active_children()}
        seen.append(listening({os.getpid(), *filter(None, children)}))

    with mock.patch("os.fsync"):
        train_specialists(replace(field.work, progress=progress))
    assert len(seen) > 4
    assert set().union(*seen) == set()
    with socket.socket() as port:  # control
        port.bind(("127.0.0.1", 0))
        port.listen()
        assert len(listening({os.getpid()})) == 1


def test_ranks_deal_the_specialists_among_them(tmp_path: Path) -> None:
    field = Field(grounds(tmp_path), content())

    class Second(Ranks):
        """One of two, the other of which says nothing."""

        def first_says(self, text: str) -> str:
            return text

        def agree(self, value: object) -> None:
            pass

        def wait(self) -> None:
            pass

    done: list[str] = []
    with mock.patch.object(stage, "train_specialist", lambda work, run, *_: done.append(run.name)):
        train_specialists(replace(field.work, ranks=Second(1, 2)))
    assert done == ["pairs-1"]


# What is done


def lines(folder: Path, document: dict[str, Any]) -> list[str]:
    """What is still to be done."""
    field = Field(folder, document)
    return pending(field.work).lines()


def test_a_run_trains_and_captures_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    grounds(tmp_path)
    first = run_document(content(sets=[1]), tmp_path, tmp_path / "out")
    assert first.done == ["train specialist pairs-1", "capture specialist pairs-1"]
    assert not lines(tmp_path, content(sets=[1]))
    # What is how, and not what.
    assert not lines(
        tmp_path,
        content(
            sets=[1], workers=4, train=train(epochs=2, batch_size=16, schedule="cosine", checkpoint_every=9)
        ),
    )
    every = ["train specialist pairs-0", "capture specialist pairs-0"]
    assert lines(tmp_path, content()) == every
    digest = first.store.teachers["pairs-1"].digest
    second = run_document(content(), tmp_path, tmp_path / "out")
    assert second.done == every and second.store.teachers["pairs-1"].digest == digest
    weights = tmp_path / "out" / "models" / "specialists" / "pairs-0.safetensors"
    weights.unlink()
    assert lines(tmp_path, content()) == every
    third = run_document(content(), tmp_path, tmp_path / "out")  # the same weights again, so the same capture
    assert third.store.digest == second.store.digest


def test_what_is_not_to_be_captured_is_only_trained(tmp_path: Path) -> None:
    grounds(tmp_path)
    done = run_document(content(capture=False, sets=[0]), tmp_path, tmp_path / "out").done
    assert done == ["train specialist pairs-0"]
    other = content(capture=False, sets=[0], share=0.25)
    assert lines(tmp_path, other) == ["train specialist pairs-0"]  # anew: nothing rests on it
