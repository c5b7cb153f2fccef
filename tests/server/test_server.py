"""Shards, messages and the server loop, against the same sums done plainly."""

import hpcps_kernels
import numpy as np
import pytest

from hpcps import optim
from hpcps.comm import codes
from hpcps.comm.order import halves, in_turn, order, pieces
from hpcps.comm.topology import chunk_bounds
from hpcps.config import Optimizer
from hpcps.errors import CommError, ConfigError, PeerLost
from hpcps.first import FirstRows
from hpcps.params import Params
from hpcps.rows import Merger, PulledRows, Rows
from hpcps.server import filters, messages, sharding
from hpcps.server.direct import DirectClient
from hpcps.server.messages import FRONT_BYTES, HEADER_BYTES, Counts, Header, Kind
from hpcps.server.post import Inbox, Outbox
from hpcps.server.remote import RemoteClient
from hpcps.server.serve import Server
from hpcps.server.store import Shard
from hpcps.server.table import Table, WholeTable
from hpcps.sums import Decoder, Summed

KERNELS = hpcps_kernels.load("reference")
OPTIMIZER = optim.make(Optimizer(kind="adam", learning_rate=0.1, beta1=0.8), KERNELS)
STEPS = 4
ROWS = 23
WIDTHS = {"wide": 3, "rare": 1}
GRAINS = 11


def orders(workers, exact):
    """Grains in tree order, or workers one after the other."""
    return order(chunk_bounds(GRAINS, workers)) if exact else in_turn(workers)


def gradient(step, worker, count, workers, exact):
    """A worker's pieces of a gradient, or its whole gradient."""
    if not exact:
        return np.random.default_rng(step * 100 + worker).normal(size=count).astype(np.float32)
    grains = np.random.default_rng(step).normal(size=(GRAINS, count)).astype(np.float32)
    bounds = chunk_bounds(GRAINS, workers)
    return np.array([in_tree_order(grains, own) for own in pieces(*bounds[worker : worker + 2], GRAINS)])


def in_tree_order(grains, node):
    if len(node) == 1:
        return grains[node.start]
    low, high = (in_tree_order(grains, half) for half in halves(node))
    return low + high


def rows(step, worker, exact):
    """Some rows of a table of ROWS rows; of another none, in some steps."""
    rng = np.random.default_rng(step * 100 + worker)
    found = {}
    for name, width in WIDTHS.items():
        keys = rng.permutation(ROWS)[: rng.integers(0, 7) if name == "rare" else 9]
        values = rng.normal(size=(len(keys), width))
        found[name] = Rows(keys, np.rint(values * 2**40).astype(np.int64) if exact else values.astype(np.float32))
    return found


def summed(step, worker, count, workers, exact, tables):
    found = rows(step, worker, exact) if tables else {}
    return Summed(gradient(step, worker, count, workers, exact), 2.0**40 if exact else 1.0, found)


def start(count, tables):
    shapes = {"dense": (count,)} | ({name: (ROWS, width) for name, width in WIDTHS.items()} if tables else {})
    params = Params.zeros(shapes, np.float32, tuple(WIDTHS) if tables else ())
    params.flat[:] = np.arange(len(params.flat))
    return params


class Given:
    """Rows that begin as those of an array."""

    def __init__(self, rows):
        self.width = rows.shape[1]
        self._rows = rows.copy()

    def fill(self, rows, keys, kernels):
        rows[:] = self._rows[keys]


def stored(params):
    return {name: Table(Given(params[name]), np.float32, OPTIMIZER, KERNELS) for name in params.tables}


def pulled(params):
    """Where rows go on a worker, if there are any."""
    return PulledRows({name: WIDTHS[name] for name in params.tables}, np.float32, KERNELS) if params.tables else None


def all_rows(params, client, rows):
    """All parameters, flat, once all rows have been fetched."""
    keys = {name: np.arange(ROWS) for name in params.tables}
    if keys:
        client.fetch(keys)
    return np.concatenate([params["dense"], *(rows.rows(name, keys[name]).reshape(-1) for name in keys)])


def plain(count, workers, exact, tables=False):
    """The parameters after STEPS, computed in one place."""
    params = start(count, tables)
    state = OPTIMIZER.init(params["dense"])
    states = {name: OPTIMIZER.init(params[name]) for name in params.tables}
    decoder = Decoder(exact, np.float32, KERNELS)
    for step in range(1, STEPS + 1):
        total = gradient(step, 0, count, 1 if exact else workers, exact)
        for worker in range(1, 1 if exact else workers):
            total += gradient(step, worker, count, workers, exact)
        OPTIMIZER.update(params["dense"], state, total.reshape(-1), 0.5, step)
        for name in params.tables:
            total = np.zeros(params[name].shape, decoder.rows_dtype)
            touched = np.zeros(ROWS, bool)
            for worker in range(workers):
                keys, values = rows(step, worker, exact)[name]
                total[keys] += values
                touched[keys] = True
            keys = np.flatnonzero(touched)
            values = decoder.values(total[keys], 2.0**40)
            OPTIMIZER.update_rows(params[name], states[name], values, keys, 0.5, step)
    return params.flat


def make_shard(params, decoder, workers, tables=None, exact=False):
    return Shard(params, OPTIMIZER, decoder, Merger(KERNELS), orders(workers, exact), 0.5, tables or {})


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("count", "tables"), [(3, False), (4, True), (101, False), (101, True)])
def test_workers_and_shards_on_ranks_of_their_own(on_ranks, workers, shards, exact, count, tables):
    slices = sharding.shard_slices(count, shards)
    roles = sharding.roles(workers + shards, shards)
    counts = orders(workers, exact).counts

    def serve(transport, params, decoder):
        number = transport.rank - workers
        shard = make_shard(params["dense"][slices[number]].copy(), decoder, workers, stored(params), exact)
        Server(transport, shard, number, list(range(workers)), decoder, counts).run()

    def body(transport):
        decoder, params = Decoder(exact, np.float32, KERNELS), start(count, tables)
        if transport.rank >= workers:
            return serve(transport, params, decoder)
        servers = [roles.server_rank(shard) for shard in range(shards)]
        found = pulled(params)
        client = RemoteClient(transport, params["dense"], found, slices, servers, transport.rank, decoder)
        for step in range(1, STEPS + 1):
            client.push(step, summed(step, transport.rank, count, workers, exact, tables))
            some = {name: np.array([22, 0, 7]) for name in params.tables}
            if tables:
                some["rare"] = some["rare"][:0]
            client.pull(step, None if step == STEPS else some)
            if tables and step < STEPS:
                assert found.rows("wide", some["wide"]).shape == (3, 3)
                assert found.rows("rare", some["rare"]).shape == (0, 1)
        whole = all_rows(params, client, found)
        client.finish()
        return whole

    for params in on_ranks(workers + shards, body)[:workers]:
        assert np.array_equal(params, plain(count, workers, exact, tables))


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_worker_and_shards_in_one(shards, exact, tables):
    params = start(101, tables)
    slices = sharding.shard_slices(101, shards)
    decoder = Decoder(exact, np.float32, KERNELS)
    found = pulled(params)
    held = [{} if number else stored(params) for number in range(shards)]
    parts = [make_shard(params["dense"][part], decoder, 1, own, exact) for own, part in zip(held, slices, strict=True)]
    client = DirectClient(parts, slices, found)
    for step in range(1, STEPS + 1):
        client.push(step, summed(step, 0, 101, 1, exact, tables))
        client.pull(step, None)
    client.finish()
    assert np.array_equal(all_rows(params, client, found), plain(101, 1, exact, tables))


def test_rows_that_are_not_there_are_refused():
    table = WholeTable(np.zeros((5, 2), np.float32), OPTIMIZER, KERNELS)
    shard = make_shard(np.zeros(3, np.float32), Decoder(False, np.float32, KERNELS), 1, {"wide": table})
    with pytest.raises(CommError, match="does not have"):
        shard.pull(0, {"wide": np.array([5])})
    with pytest.raises(CommError, match="does not have"):
        shard.push(
            0, 1, Summed(np.zeros(3, np.float32), 1.0, {"wide": Rows(np.array([7]), np.zeros((1, 2), np.float32))})
        )


def test_keys_survive_the_wire():
    keys = [np.array([5, 3]), np.empty(0, np.int64), np.array([2**40])]
    packed = np.concatenate(messages.keys_section(keys))
    assert [found.tolist() for found in messages.unpack_keys(packed, 3)] == [[5, 3], [], [2**40]]
    for broken in (packed[:-1], np.array([-1, 1, 0]), np.array([2**62, 0, 0])):
        with pytest.raises(CommError, match=r"section of \d keys came for 3 tables"):
            messages.unpack_keys(broken, 3)


@pytest.mark.parametrize("exact", [False, True])
def test_a_sum_does_not_depend_on_who_pushed_first(exact):
    decoder = Decoder(False, np.float32, KERNELS)
    found = set()
    for turns in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        shard = make_shard(np.zeros(100, np.float32), decoder, 3, exact=exact)
        done = [shard.push(worker, 1, summed(1, worker, 100, 3, exact, False)) for worker in turns]
        assert done == [True, True, False]  # still needed, until the last has come
        found.add(shard.params.tobytes())
    assert len(found) == 1


def test_a_push_of_another_number_of_pieces_is_refused():
    shard = make_shard(np.zeros(3, np.float32), Decoder(True, np.float32, KERNELS), 2, exact=True)
    with pytest.raises(CommError, match="worker 1 pushed 2 pieces, not 1"):
        shard.push(1, 1, Summed(np.ones((2, 3), np.float32), 1.0))


@pytest.mark.parametrize("at_once", [False, True])
def test_a_push_that_skips_a_step_is_refused(at_once):
    shard = make_shard(np.zeros(3, np.float32), Decoder(False, np.float32, KERNELS), 2)
    ones = Summed(np.ones(3, np.float32), 1.0)
    with pytest.raises(CommError, match="worker 1 pushed step 2 to a shard that has had step 0"):
        shard.push(1, 2, ones, at_once)


def test_a_worker_that_fails_ends_the_server(on_ranks):
    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        if transport.rank == 1:
            Server(transport, make_shard(np.zeros(3, np.float32), decoder, 1), 0, [0], decoder, [1]).run()
        raise ValueError("broken")

    _, errors = on_ranks.run(2, body)
    assert isinstance(errors[1], PeerLost)


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8"])
@pytest.mark.parametrize("dense", [0, 6, FRONT_BYTES])
@pytest.mark.parametrize("follow", [0, 5, 2000])
def test_letters_survive_the_way(on_ranks, dtype, dense, follow):
    numbers = np.arange(dense, dtype=dtype)
    sections = [np.arange(follow) + 7, np.arange(3 * follow, dtype=np.float32).reshape(-1, 3)] if follow else []

    def body(transport):
        header = Header(Kind.PUSH, 3, 2, 2**40, 0, np.dtype(dtype), np.dtype("<i8"), 1, 2.0**-20, follow, -1)
        header.at_once = header.is_late = True
        header.ahead = 2**40
        if transport.rank == 0:
            outbox = Outbox(transport, 1, 5)
            for _ in range(3):
                outbox.send(header, numbers, sections)
            outbox.flush()
            return outbox.sent_bytes
        header.count, header.more = dense, messages.more_bytes(sections)
        inbox = Inbox(transport, 0, 5, np.dtype(dtype), dense)
        kept = []
        for number in range(3):
            while (letter := take(transport, inbox)) is None:
                pass
            kept.append(letter)
            if number < 2:
                inbox.listen()
        for letter in kept:  # none has been written over by those that came later
            assert letter.header == header
            assert np.array_equal(letter.dense, numbers)
            start = 0
            for section in sections:
                found = letter.more[start : start + section.nbytes].view(section.dtype)
                assert np.array_equal(found, section.reshape(-1))
                start += messages.padded(section.nbytes)
        return inbox.received_bytes

    sent, received = on_ranks(2, body)
    assert sent == received >= 3 * HEADER_BYTES


def take(transport, inbox):
    transport.wait(inbox.ticket)
    return inbox.take()


def test_a_dense_section_of_another_size_or_dtype_is_refused(on_ranks):
    def body(transport):
        if transport.rank == 0:
            outbox = Outbox(transport, 1, 5)
            outbox.send(Header(Kind.PUSH, 0, 0, 1), np.zeros(4, np.float32))
            outbox.flush()
            return
        with pytest.raises(CommError, match="4 float32 numbers came for 3 float64"):
            take(transport, Inbox(transport, 0, 5, np.dtype(np.float64), 3))

    on_ranks(2, body)


def test_a_message_of_anything_else_is_refused():
    message = np.zeros(FRONT_BYTES, np.uint8)
    messages.write(message, Header(Kind.PUSH_PULL, 0, 0, 1, 4, pieces=2))
    assert messages.read(message).count == 4
    damaged = {0: 1, 4: 1, 6: 99, 16: 5, 23: 255, 24: 77, 26: 77, 28: 3, 40: 9, 47: 255, 63: 255, 95: 255}
    for place, value in damaged.items():
        before = message.copy()
        message[place] = value
        with pytest.raises(CommError):
            messages.read(message)
        message[:] = before


def test_too_few_rows_are_refused():
    with pytest.raises(CommError, match="64 bytes of rows came"):
        messages.take_rows(np.zeros(64, np.uint8), [17], [1], np.dtype(np.float32))


def test_counts_survive_the_way():
    for late in ((), ([4, 0, 2], [0, 2**40, 7])):
        counts = Counts(5, 1, 12, 2**40, 7, {0: 3, 17: 2}, *late)
        assert Counts.unpacked(counts.packed()) == counts


def test_roles():
    assert sharding.roles(1, 3) == sharding.Roles(1, 0)
    assert sharding.roles(3, 1) == sharding.Roles(2, 1)
    assert sharding.roles(3, 1, colocated=True) == sharding.Roles(3, 3, are_colocated=True)
    with pytest.raises(ConfigError, match=r"server\.count = 2 leaves no worker among 2 ranks; use at least 3"):
        sharding.roles(2, 2)


@pytest.mark.parametrize("kind", ["bf16", "int8", "topk"])
@pytest.mark.parametrize("tables", [False, True])
@pytest.mark.parametrize("slack", [0, 1])
def test_what_codes_leave_out_comes_later(on_ranks, kind, tables, slack):
    """Plain SGD moves by all that was pushed, but for what is still kept on the workers."""
    count, workers, shards, steps = 300, 2, 2, 30
    sgd = optim.make(Optimizer(kind="sgd", learning_rate=1.0), KERNELS)
    slices = sharding.shard_slices(count, shards)

    def body(transport):
        decoder, params = Decoder(False, np.float32, KERNELS), start(count, tables)
        code = codes.make(kind, 64, 0.2, np.float32, KERNELS)
        if transport.rank >= workers:
            number = transport.rank - workers
            held = stored(params)
            shard = Shard(
                np.zeros(count, np.float32)[slices[number]].copy(), sgd, decoder, Merger(KERNELS), in_turn(2), 1.0, held
            )
            return Server(transport, shard, number, [0, 1], decoder, [1, 1], code=code).run()
        dense, found = np.zeros(count, np.float32), pulled(params)
        client = RemoteClient(transport, dense, found, slices, [2, 3], transport.rank, decoder, code=code)
        for step in range(1, steps + 1):
            client.push(step, summed(step, transport.rank, count, workers, False, tables), slack)
            client.pull(step, {name: np.arange(3) for name in params.tables} if step < steps else None, slack)
        client.finish()
        return dense, np.concatenate([encoder.residual for encoder in client._encoders])

    found = on_ranks(workers + shards, body)[:workers]
    pushed = sum(gradient(step, worker, count, workers, False) for step in range(1, steps + 1) for worker in range(2))
    kept = found[0][1] + found[1][1]
    assert np.array_equal(found[0][0], found[1][0])
    assert np.allclose(found[0][0], kept - pushed, atol=1e-3)
    assert kept.any()


@pytest.mark.parametrize("shards", [1, 2])
def test_keys_that_a_shard_knows_are_not_sent_again(on_ranks, shards):
    """Rows of the keys that were pulled last, and of others; what is pushed is right either way."""
    rows_each, steps = 2000, 6

    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        sgd = optim.make(Optimizer(kind="sgd", learning_rate=1.0), KERNELS)
        slices = sharding.shard_slices(1, shards)
        if transport.rank > 0:
            tables = {"table": Table(FirstRows((10**6, 1), 0), np.float32, sgd, KERNELS)}
            rest = decoder, Merger(KERNELS), in_turn(1), 1.0, tables
            shard = Shard(np.zeros(1, np.float32)[slices[transport.rank - 1]].copy(), sgd, *rest)
            return Server(transport, shard, transport.rank - 1, [0], decoder, [1]).run()
        rows = PulledRows({"table": 1}, np.float32, KERNELS)
        client = RemoteClient(transport, np.zeros(1, np.float32), rows, slices, list(range(1, shards + 1)), 0, decoder)
        sent, expected = [], {}
        for step in range(1, steps + 1):
            keys = np.random.default_rng(step // 2).permutation(10**6)[:rows_each]
            values = np.full((rows_each, 1), step, np.float32)
            before = client.traffic().sent_bytes
            client.push(step, Summed(np.zeros(1, np.float32), 1.0, {"table": Rows(keys, values)}))
            sent.append(client.traffic().sent_bytes - before)
            for key in keys.tolist():
                expected[key] = expected.get(key, 0.0) - step
            client.pull(step, {"table": np.random.default_rng((step + 1) // 2).permutation(10**6)[:rows_each]})
        every = np.array(sorted(expected))
        client.fetch({"table": every})
        found = rows.rows("table", every)[:, 0]
        client.finish()
        assert found.tolist() == [expected[key] for key in every.tolist()]
        return sent

    sent = on_ranks(1 + shards, body)[0]
    assert sent[0] > rows_each * 12  # keys and values
    assert all(rows_each * 4 < one < rows_each * 4 + 1000 for one in sent[1:])  # values alone


def test_keys_of_a_pull_that_never_was_are_refused(on_ranks):
    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        if transport.rank == 1:
            table = WholeTable(np.zeros((5, 2), np.float32), OPTIMIZER, KERNELS)
            shard = make_shard(np.zeros(3, np.float32), decoder, 1, {"wide": table})
            with pytest.raises(CommError, match="worker 0 names the keys of a pull that shard 0 has not had"):
                Server(transport, shard, 0, [0], decoder, [1]).run()
            return
        outbox = Outbox(transport, 1, messages.REQUEST_TAG)
        outbox.send(Header(Kind.PUSH, 0, 0, 1, keys=messages.SAME_KEYS), np.zeros(3, np.float32))
        outbox.flush()

    on_ranks(2, body)


def test_a_coded_push_that_comes_again_changes_nothing(on_ranks):
    """Its first copy is being added up: the other worker is late."""
    sgd = optim.make(Optimizer(kind="sgd", learning_rate=1.0), KERNELS)
    code = codes.make("bf16", 64, 0.2, np.float32, KERNELS)
    first, second = np.full(4, 2.0, np.float32), np.full(4, 5.0, np.float32)

    def coded(x):
        return filters.Encoder(code, 4, np.float32).encode(x)

    def body(transport):
        decoder = Decoder(False, np.float32, KERNELS)
        if transport.rank == 3:
            shard = Shard(np.zeros(4, np.float32), sgd, decoder, Merger(KERNELS), in_turn(3), 1.0)
            Server(transport, shard, 0, [0, 1, 2], decoder, [1] * 3, code=code).run()
            return shard.params, shard.duplicates
        outbox, inbox = (
            Outbox(transport, 3, messages.REQUEST_TAG),
            Inbox(transport, 3, messages.ANSWER_TAG, np.dtype(np.float32), 4),
        )
        header = Header(Kind.PUSH, transport.rank, 0, 1, dtype=messages.CODES)
        if transport.rank == 0:
            outbox.send(header, coded(first))
            outbox.flush()
        transport.group([0, 1, 2]).barrier()
        if transport.rank == 1:  # added to the first worker's
            outbox.send(header, coded(second))
            outbox.flush()
        transport.group([0, 1, 2]).barrier()
        if transport.rank == 0:
            outbox.send(header, coded(first))
            outbox.flush()
        transport.group([0, 1, 2]).barrier()
        if transport.rank == 2:
            outbox.send(header, coded(second))
        outbox.send(Header(Kind.FINISH, transport.rank, 0))
        take(transport, inbox)

    params, duplicates = on_ranks(4, body)[3]
    assert params.tolist() == [-12.0] * 4
    assert duplicates == 1
