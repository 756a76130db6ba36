"""The training loop on a network of a few hundred weights: what it keeps, resumes, opens, halves and refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from inspectd.errors import DataError, UsageError
from inspectd.workshop.checkpoint import RunFolder
from inspectd.workshop.distributed import World
from inspectd.workshop.loop import fit
from inspectd.workshop.numerics import is_out_of_memory
from inspectd.workshop.optimiser import LAYER_GROUPS, Optimiser, group_of, open_groups, schedule
from inspectd.workshop.options import TrainOptions, parse_duration
from inspectd.workshop.task import Score, Task

OPTIONS = TrainOptions(epochs=6, batch_size=16, precision="f32", patience=99)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads cost more than they bring on so small a network."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Net(nn.Module):
    """A ResNet in miniature: names, norm and channels last as in the real one."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Conv2d(8, 8, 3)
        self.layer4 = nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.layer4(torch.relu(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class Noise(Task):
    """Which of two textures: half the pictures have stripes. `interrupt` is called at every batch."""

    def __init__(self, interrupt=lambda: None, score=None):
        generator = torch.Generator().manual_seed(1)
        self.pictures = 64
        self.x = torch.randn(64, 3, 12, 12, generator=generator)
        self.y = torch.arange(64) % 2
        self.x[self.y == 1, :, ::2] += 0.7
        self.interrupt, self._score = interrupt, score
        self.batches, self.judged = [], 0

    def batch(self, index, generator):
        self.interrupt()
        self.batches.append(len(index))
        noise = torch.randn(len(index), 1, 1, 1, generator=generator)
        return (self.x[index] + 0.1 * noise).to(memory_format=torch.channels_last), self.y[index]

    def loss(self, network, batch):
        x, y = batch
        return nn.functional.cross_entropy(nn.functional.dropout(network(x), 0.1), y)

    def judge(self, network):
        assert not network.training
        self.judged += 1
        loss = float(nn.functional.cross_entropy(network(self.x), self.y))
        return Score((-loss if self._score is None else self._score(self.judged),), {"val loss": loss})

    def plain_batches(self, size):
        yield self.x


def made():
    torch.manual_seed(0)
    return Net().to(memory_format=torch.channels_last)


def run(task, options=OPTIONS, folder=None, network=None, **more):
    network = network or made()
    position = fit(
        network, task, options, world=World(), device=CPU, run=folder, tell=lambda *_: None, **more
    )  # fmt: skip
    return network, position


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["adamw", "muon", "sgd"])
def test_a_run_killed_at_every_other_batch_ends_with_the_same_weights(optimiser, tmp_path):
    """Interrupted twenty times, resumed as often: bit for bit what the unbroken run gives, BatchNorm and all."""
    options = replace(OPTIONS, optimiser=optimiser, epochs=8)
    whole, _ = run(Noise(), options)

    generator = torch.Generator().manual_seed(5)
    folder = RunFolder(tmp_path / "run", {"data": "x"})
    kills = 0
    while True:
        left = int(torch.randint(1, 7, (1,), generator=generator))

        def interrupt(left=[left], allowed=kills < 20):  # noqa: B006 - the counter of this attempt
            left[0] -= 1
            if left[0] < 0 and allowed:
                raise KilledError

        try:
            resumed, position = run(Noise(interrupt), options, folder)
            break
        except KilledError:
            kills += 1
    assert kills >= 8
    assert position.epochs_done == 8
    assert equal(weights(resumed), weights(whole))


def test_it_learns_and_keeps_the_best_epoch(tmp_path):
    """The weights at the end are those of the epoch that scored best, not the last ones."""
    scores = [0.1, 0.5, 0.9, 0.2, 0.3, 0.4]
    folder = RunFolder(tmp_path / "run", {})
    network, position = run(Noise(score=lambda n: scores[n - 1]), OPTIONS, folder)
    assert position.best_epoch == 3
    assert equal(weights(network), folder.load_best())
    learned, _ = run(Noise(), replace(OPTIONS, epochs=30))
    assert nn.functional.cross_entropy(learned(Noise().x), Noise().y).item() < 0.3


def test_it_stops_early_and_says_where(tmp_path):
    """Two epochs without a better score are enough where patience is two."""
    rows = []
    _, position = run(Noise(score=lambda n: -n), replace(OPTIONS, patience=2), on_epoch=rows.append)
    assert (position.epochs_done, position.best_epoch, position.stopped) == (3, 1, True)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["best"] for row in rows] == [1, 0, 0]


def test_out_of_memory_halves_the_parts_and_not_the_step():
    """Gradients of parts add up to that of the whole batch, as far as BatchNorm lets them."""
    failures = []

    class Scarce(Noise):
        def loss(self, network, batch):
            if len(batch[0]) > 4:
                failures.append(len(batch[0]))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return super().loss(network, batch)

    task = Scarce()
    _, position = run(task, replace(OPTIONS, epochs=1))
    assert failures == [16, 8]
    assert position.micro_batch == 4
    assert position.steps_done == 4
    assert task.batches[-4:] == [4, 4, 4, 4]


def test_memory_that_does_not_suffice_for_anything_is_an_error():
    class Hopeless(Noise):
        def loss(self, network, batch):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with pytest.raises(UsageError, match="smaller --size"):
        run(Hopeless())


def test_other_errors_are_not_taken_for_scarce_memory():
    assert not is_out_of_memory(RuntimeError("shape mismatch"))

    class Broken(Noise):
        def loss(self, network, batch):
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(Broken())


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    """Without BatchNorm and noise, four parts of four are one batch of sixteen."""

    class Plain(Noise):
        def batch(self, index, generator):
            return self.x[index].to(memory_format=torch.channels_last), self.y[index]

        def loss(self, network, batch):
            return nn.functional.cross_entropy(network(batch[0]), batch[1])

    def trained(accumulate):
        network = made()
        network.bn1 = nn.Identity()
        options = replace(OPTIONS, optimiser="sgd", learning_rate=0.01, epochs=1, accumulate=accumulate)
        return weights(run(Plain(), options, network=network)[0])

    one, four = trained(1), trained(4)
    for name, tensor in one.items():
        assert torch.allclose(tensor, four[name], atol=1e-6), name


def test_a_loss_that_is_no_number_is_refused_and_the_checkpoint_stays(tmp_path):
    """The message names the option to change; the last good epoch can be loaded."""

    class Diverges(Noise):
        def loss(self, network, batch):
            loss = super().loss(network, batch)
            return loss * math.nan if self.judged >= 2 else loss

    folder = RunFolder(tmp_path / "run", {})
    with pytest.raises(DataError, match="--learning-rate"):
        run(Diverges(), OPTIONS, folder)
    position, tensors = folder.load()
    assert position.epochs_done == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    """Other data or options: the message says which, and nothing is lost."""
    run(Noise(), replace(OPTIONS, epochs=1), RunFolder(tmp_path / "run", {"data": "a", "size": 32}))
    with pytest.raises(DataError, match="had size 32, now it is 64"):
        run(Noise(), OPTIONS, RunFolder(tmp_path / "run", {"data": "a", "size": 64}))
    own = RunFolder(tmp_path / "run", {"data": "a", "size": 32})
    assert own.load()[0].epochs_done == 1
    own.check()
    RunFolder(tmp_path / "run", {"data": "b", "size": 32}).save_best({"w": torch.zeros(1)})
    for read in (own.check, own.load_best):
        with pytest.raises(DataError, match='had data "b", now it is "a"'):
            read()


def test_a_checkpoint_whose_tensors_fit_nothing_is_refused(tmp_path):
    """A name or a shape that a damaged header says: one line, and what to do."""
    run(Noise(), replace(OPTIONS, epochs=1), RunFolder(tmp_path / "run", {}))
    position, tensors = RunFolder(tmp_path / "run", {}).load()
    name = next(name for name in tensors if name.startswith("network/") and tensors[name].ndim)
    for changed in ({"elsewhere": tensors[name].clone()}, {name: tensors[name].flatten()[:1].clone()}):
        RunFolder(tmp_path / "run", {}).save(position, {**tensors, **changed})
        with pytest.raises(DataError, match="run: is damaged: its tensors fit nothing here"):
            run(Noise(), OPTIONS, RunFolder(tmp_path / "run", {}))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "run", {})
    run(Noise(), replace(OPTIONS, epochs=1), folder)
    last = tmp_path / "run" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(DataError, match="--restart"):
        run(Noise(), OPTIONS, folder)


def test_a_full_disk_loses_no_checkpoint(tmp_path, monkeypatch):
    """The write that fails leaves what was saved before."""
    folder = RunFolder(tmp_path / "run", {})
    run(Noise(), replace(OPTIONS, epochs=1), folder)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("inspectd.workshop.checkpoint.save_file", full)
    with pytest.raises(DataError, match=r"No space left on device.*--resume"):
        run(Noise(), OPTIONS, folder)
    assert folder.load()[0].epochs_done == 1


def test_layers_open_from_the_head_down():
    """Frozen layers keep weights and statistics; then everything learns."""
    assert open_groups(0.0, "progressive") == ("head", "layer4")
    assert open_groups(0.15, "progressive") == ("head", "layer4", "layer3")
    assert open_groups(0.2, "progressive") == open_groups(0.0, "all") == LAYER_GROUPS
    before = weights(made())
    options = replace(OPTIONS, epochs=1, stages="progressive")
    # One epoch of a schedule of one: the whole of it is judged by where it begins.
    after = weights(run(Noise(), options)[0])
    for name in ("conv1.weight", "bn1.weight", "bn1.running_mean", "layer1.weight"):
        assert torch.equal(before[name], after[name]), name
    for name in ("layer4.weight", "fc.weight"):
        assert not torch.equal(before[name], after[name]), name
    later = weights(run(Noise(), replace(options, epochs=10))[0])
    assert not torch.equal(before["conv1.weight"], later["conv1.weight"])


def test_every_layer_group_has_its_own_rate():
    """From given weights the rate falls toward the input; Muon's banks and the rest share it."""
    network = made()
    optimiser = Optimiser(network, TrainOptions(weights="imagenet", layer_decay=0.5, learning_rate=1e-3))
    assert optimiser.set_rate(1.0) == 1e-3
    rates = {
        group_of(name): group["lr"]
        for inner in optimiser._optimisers
        for group in inner.param_groups
        for name, p in network.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert rates == pytest.approx({"head": 1e-3, "layer4": 5e-4, "layer1": 1e-3 / 16, "stem": 1e-3 / 32})


def test_muon_steps_the_network_itself():
    """The matrices that it sees are the filters' own memory."""
    network = made()
    before = network.layer1.weight.detach().clone()
    run(Noise(), replace(OPTIONS, optimiser="muon", epochs=1, ema_decay=0.0), network=network)
    assert not torch.equal(before, network.layer1.weight)


def test_the_schedule_rises_and_falls():
    assert schedule(0.0) == pytest.approx(0.02)
    assert schedule(0.15) == pytest.approx(1.0)
    assert schedule(1.0) == pytest.approx(0.01)
    values = [schedule(done / 100) for done in range(101)]
    assert values.index(max(values)) == 15


def test_a_time_budget_ends_it():
    """A thousand epochs in a second, the last of them at the end of the schedule."""
    rows = []
    _, position = run(Noise(), replace(OPTIONS, epochs=100_000), budget_s=1.0, on_epoch=rows.append)
    assert position.epochs_done < 100_000
    assert rows[-1]["rate"] < 0.1 * max(row["rate"] for row in rows)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "-5m", "0", "5d"])
def test_other_durations_are_refused(text):
    with pytest.raises(UsageError, match="no duration"):
        parse_duration(text)
