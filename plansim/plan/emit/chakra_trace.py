"""One rank's step as Chakra nodes: compute between collectives, sends and receives, gradients, optimizer."""

from __future__ import annotations

from functools import lru_cache

from plansim.hardware.device import DTYPE_BYTES
from plansim.plan.emit.chakra_groups import Groups
from plansim.plan.grid import grid_of
from plansim.plan.layout import chunk_layers
from plansim.plan.model import Plan
from plansim.plan.modules import recomputed
from plansim.plan.recompute import modes_of_blocks
from plansim.schedules import find_schedule
from plansim.schedules.base import Action, Kind, Program
from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import (
    Attention,
    Block,
    Communication,
    Convolution,
    Elementwise,
    Matmul,
    Operator,
    Recurrent,
    Shard,
)

COMM_TYPES = {"all_reduce": 0, "all_gather": 2, "broadcast": 5, "all_to_all": 6, "reduce_scatter": 7}
"""Numbers of the schema's CollectiveCommType."""

OPTIMIZER_BYTES = {"sgd": 12.0, "momentum": 20.0, "adam": 28.0, "adamw": 28.0}
"""Bytes an update moves per parameter: fp32 weight and states read and written, fp32 gradient read."""


def rank_trace(plan: Plan, model: Model, rank: int, groups: Groups) -> list[dict[str, object]]:
    """Return the nodes of one rank in an order in which every dependency comes first."""
    return _Trace(plan, model, rank, groups).build()


class _Trace:
    """Appends nodes; `last` ends the chain of the compute stream."""

    def __init__(self, plan: Plan, model: Model, rank: int, groups: Groups) -> None:
        self.plan, self.model, self.rank, self.groups = plan, model, rank, groups
        self.grid = grid_of(plan)
        self.stage = self.grid.coordinates(rank)["pp"]
        self.chunks = chunks_of(plan, model)
        self.element_bytes = _element_bytes(plan)
        self.nodes: list[dict[str, object]] = []
        self.last: int | None = None
        self.before: int | None = None
        self.pending: list[int] = []
        self.reductions: list[int] = []

    def build(self) -> list[dict[str, object]]:
        """Append everything the step does."""
        program = _program(self.plan)[self.stage]
        final = {a.chunk: i for i, a in enumerate(program) if a.kind in ("B", "W")}
        for i, action in enumerate(program):
            self._action(action, last_pass=final.get(action.chunk) == i)
        self._optimizer()
        return self.nodes

    def _action(self, action: Action, *, last_pass: bool) -> None:
        start = self.last
        self._gather_parameters(action)
        self._receive(action)
        for block, mode in self._blocks(action):
            self._block(block, mode, action)
        self._send(action)
        if action.kind in ("B", "W"):
            self._reduce_gradients(action, last_pass=last_pass)
        self.before = start

    def _blocks(self, action: Action) -> list[tuple[Block, str]]:
        """Return the blocks of an action in order, each with how it is recomputed."""
        blocks = self.chunks[action.chunk]
        modes = modes_of_blocks(self.plan.recompute_of(self.stage), [b.kind for b in blocks])
        both = list(zip(blocks, modes, strict=True))
        return both if action.kind == "F" else both[::-1]

    def _block(self, block: Block, mode: str, action: Action) -> None:
        """Append a block's compute, cut where it communicates."""
        name = f"{block.kind} {action}"
        if action.kind in ("B", "I"):
            self._operators(f"again {name}", self._repeated(block, mode), "F")
        operators = block.operators if action.kind == "F" else block.operators[::-1]
        self._operators(name, operators, action.kind)

    @staticmethod
    def _repeated(block: Block, mode: str) -> tuple[Operator, ...]:
        """Return what recomputation runs again before the block's backward."""
        return tuple(block.operators[i] for i in recomputed(block, mode).repeated)

    def _operators(self, name: str, operators: tuple[Operator, ...], kind: Kind) -> None:
        flop = nbytes = 0.0
        for op in operators:
            if not isinstance(op, Communication):
                work = work_of(op, kind)
                flop += work * op.flop
                nbytes += work * _bytes(op, self.element_bytes)
                continue
            collective = {"F": op.collective, "W": None}.get(kind, op.backward)
            if collective in COMM_TYPES and len(self.groups.of(op.axis, self.rank)) > 1:
                self._compute(name, flop, nbytes)
                flop = nbytes = 0.0
                for _ in range(op.repeat):
                    self.last = self._collective(
                        f"{op.name} {name}", collective, op.axis, op.nbytes, self._after()
                    )
        self._compute(name, flop, nbytes)

    def _gather_parameters(self, action: Action) -> None:
        """Append ZeRO-3's gather; it starts with the previous action, or without overlap at its end."""
        if self.plan.parallel.zero_stage != 3 or action.kind == "W":
            return
        after = self.before if self.plan.overlap.parameters else self.last
        for axis, count in self._parameters(action.chunk, sharded=True):
            node = self._collective(
                f"parameters {action}", "all_gather", axis, count * self.element_bytes, _deps(after)
            )
            self.pending.append(node)

    def _reduce_gradients(self, action: Action, *, last_pass: bool) -> None:
        """Append the chunk's gradient traffic: every pass from ZeRO-2 on, else after the last pass."""
        stage = self.plan.parallel.zero_stage
        if stage < 2 and not last_pass:
            return
        collective = "reduce_scatter" if stage else "all_reduce"
        for axis, count in self._held(action.chunk, sharded=stage > 0):
            nbytes, after = count * self.element_bytes, self._after(clear=False)
            if len(self.groups.of(axis, self.rank)) > 1:
                node = self._collective(f"gradients {action}", collective, axis, nbytes, after)
                self._hold(node, overlap=self.plan.overlap.gradients)
                after = _deps(node)
            if last_pass:
                self._reduce_replicas(f"gradients {action}", axis, nbytes, after)

    def _reduce_replicas(self, name: str, axis: str, nbytes: float, after: list[int]) -> None:
        """Append hybrid sharding's all-reduce of the shards between the replicas."""
        across = {"shard": "replica", "edp": "expert_replica"}.get(axis)
        if across is None or len(self.groups.of(across, self.rank)) == 1:
            return
        share = nbytes / len(self.groups.of(axis, self.rank))
        node = self._collective(f"{name} replicas", "all_reduce", across, share, after)
        self._hold(node, overlap=self.plan.overlap.gradients)

    def _hold(self, node: int, *, overlap: bool) -> None:
        """Let the optimizer wait for a node, and without overlap the compute stream too."""
        self.reductions.append(node)
        if not overlap:
            self.last = node

    def _optimizer(self) -> None:
        """Append the update of this rank's share, and ZeRO-1 and 2's gather of what the others updated."""
        mine = [c for c in range(len(self.chunks)) if self._owner(c) == self.stage]
        nbytes = OPTIMIZER_BYTES[self.plan.job.optimizer] * sum(self._updated(c) for c in mine)
        self.last = self._node(
            "optimizer", "COMP_NODE", [*self._after(), *self.reductions], _work(0.0, nbytes)
        )
        if self.plan.parallel.zero_stage in (1, 2):
            for chunk in mine:
                for axis, count in self._parameters(chunk, sharded=True):
                    nbytes = count * self.element_bytes
                    self._collective(f"parameters {chunk}", "all_gather", axis, nbytes, self._after())

    def _updated(self, chunk: int) -> float:
        """Return how many of a chunk's parameters this rank updates."""
        sharded = self.plan.parallel.zero_stage > 0
        dense, experts = (len(self.groups.of(axis, self.rank)) if sharded else 1 for axis in ("shard", "edp"))
        return sum(b.parameters / dense + b.expert_parameters / experts for b in self.chunks[chunk])

    def _parameters(self, chunk: int, *, sharded: bool) -> list[tuple[str, float]]:
        """Return (axis, parameters) of a chunk's dense and expert weights where a group shares them."""
        held = self._held(chunk, sharded=sharded)
        return [(axis, n) for axis, n in held if len(self.groups.of(axis, self.rank)) > 1]

    def _held(self, chunk: int, *, sharded: bool) -> list[tuple[str, float]]:
        """Return (axis, parameters) of a chunk's dense and expert weights."""
        dense = float(sum(b.parameters for b in self.chunks[chunk]))
        experts = float(sum(b.expert_parameters for b in self.chunks[chunk]))
        axes = (("shard" if sharded else "dp_cp", dense), ("edp", experts))
        return [(axis, n) for axis, n in axes if n]

    def _owner(self, chunk: int) -> int:
        p = self.plan.parallel
        return find_schedule(p.schedule).rank_of_chunk(chunk, p.pp, p.virtual_stages) if p.pp > 1 else 0

    def _receive(self, action: Action) -> None:
        source = action.chunk - 1 if action.kind == "F" else action.chunk + 1
        if action.kind == "W" or not 0 <= source < len(self.chunks) or self._owner(source) == self.stage:
            return
        boundary = min(source, action.chunk)
        self.last = self._transfer("COMM_RECV_NODE", action, self._owner(source), self.stage, boundary)

    def _send(self, action: Action) -> None:
        """Append a send beside the compute stream."""
        to = action.chunk + 1 if action.kind == "F" else action.chunk - 1
        if action.kind == "W" or not 0 <= to < len(self.chunks) or self._owner(to) == self.stage:
            return
        self._transfer("COMM_SEND_NODE", action, self.stage, self._owner(to), min(to, action.chunk))

    def _transfer(self, kind: str, action: Action, source: int, target: int, boundary: int) -> int:
        forward = action.kind == "F"
        tag = (action.microbatch * len(self.chunks) + boundary) * 2 + (not forward)
        values = {
            "comm_size": int(self.chunks[boundary][-1].boundary_bytes),
            "comm_src": self._peer(source),
            "comm_dst": self._peer(target),
            "comm_tag": tag,
        }
        return self._node(
            f"{'send' if 'SEND' in kind else 'receive'} {action}", kind, self._after(), _attributes(values)
        )

    def _peer(self, stage: int) -> int:
        return self.grid.rank(**{**self.grid.coordinates(self.rank), "pp": stage})

    def _collective(self, name: str, collective: str, axis: str, nbytes: float, deps: list[int]) -> int:
        values = {"comm_type": COMM_TYPES[collective], "comm_size": int(nbytes)}
        group: dict[str, object] = {"name": "pg_name", "stringVal": self.groups.name(axis, self.rank)}
        attributes = [*_attributes(values), group]
        return self._node(f"{collective} {name}", "COMM_COLL_NODE", deps, attributes)

    def _compute(self, name: str, flop: float, nbytes: float) -> None:
        if flop or nbytes:
            self.last = self._node(name, "COMP_NODE", self._after(), _work(flop, nbytes))

    def _after(self, *, clear: bool = True) -> list[int]:
        """Return what the next node of the compute stream waits for: the last one, and gathers under way."""
        waiting = [*_deps(self.last), *self.pending]
        if clear:
            self.pending = []
        return waiting

    def _node(self, name: str, kind: str, deps: list[int], attributes: list[dict[str, object]]) -> int:
        number = len(self.nodes)
        self.nodes.append(
            {
                "id": str(number),
                "name": name,
                "type": kind,
                "dataDeps": [str(d) for d in deps],
                "attr": attributes,
            }
        )
        return number


def chunks_of(plan: Plan, model: Model) -> tuple[tuple[Block, ...], ...]:
    """Return the blocks of every model chunk: the embedding with the first, the head with the last."""
    p = plan.parallel
    shard = Shard(
        microbatch=p.microbatch,
        seq_len=plan.job.seq_len,
        tp=p.tp,
        cp=p.cp,
        ep=p.ep,
        etp=p.etp,
        sequence_parallel=p.sequence_parallel,
        element_bytes=_element_bytes(plan),
        flash=plan.attention == "flash",
    )
    blocks = find_family(model.family).blocks(model, shard)
    head = [b for b in blocks[:1] if b.kind == "embedding"]
    tail = [b for b in blocks[-1:] if b.kind == "head"]
    body = blocks[len(head) : len(blocks) - len(tail)]
    layers = chunk_layers(len(body), p.pp * p.virtual_stages, p.stage_layers)
    chunks, at = [], 0
    for n in layers:
        chunks.append(list(body[at : at + n]))
        at += n
    chunks[0] = head + chunks[0]
    chunks[-1] = chunks[-1] + tail
    return tuple(tuple(chunk) for chunk in chunks)


def work_of(op: Operator, kind: Kind) -> float:
    """Return an operator's share of an action, in forwards: products with weights have two backward halves.

    Examples
    --------
    >>> qkv = Matmul(name="qkv", m=8, n=8, k=8)
    >>> scores = Matmul(name="scores", m=8, n=8, k=8, weight=False)
    >>> [work_of(qkv, kind) for kind in "FBIW"], [work_of(scores, kind) for kind in "FBIW"]
    ([1.0, 2.0, 1.0, 1.0], [1.0, 2.0, 2.0, 0.0])
    """
    if kind in ("F", "B"):
        return 1.0 if kind == "F" else 2.0
    weights = op.weight if isinstance(op, Matmul) else isinstance(op, Convolution | Recurrent)
    return 1.0 if weights else 2.0 * (kind == "I")


def _element_bytes(plan: Plan) -> float:
    return DTYPE_BYTES["fp32"] if plan.job.dtype in ("fp32", "tf32") else DTYPE_BYTES["bf16"]


def _program(plan: Plan) -> Program:
    p = plan.parallel
    return _cached_program(p.schedule if p.pp > 1 else "1f1b", p.pp, plan.num_microbatches, p.virtual_stages)


@lru_cache(maxsize=8)
def _cached_program(schedule: str, pp: int, num_microbatches: int, virtual_stages: int) -> Program:
    return find_schedule(schedule).actions(pp, num_microbatches, virtual_stages)


def _bytes(op: Operator, element_bytes: float) -> float:
    """Return the bytes an operator's forward reads and writes once."""
    if isinstance(op, Matmul):
        return element_bytes * op.batch * (op.m * op.k + op.groups * op.k * op.n + op.m * op.n)
    if isinstance(op, Attention):
        queries = op.batch * op.seq_q * op.heads * (op.head_dim + op.v_head_dim)
        return element_bytes * (queries + op.batch * op.seq_kv * op.kv_heads * (op.head_dim + op.v_head_dim))
    return op.forward_bytes if isinstance(op, Elementwise) else op.saved_bytes


def _deps(node: int | None) -> list[int]:
    return [] if node is None else [node]


def _work(flop: float, nbytes: float) -> list[dict[str, object]]:
    """Return the attributes of a compute node; FLOP and bytes of a simulator's roofline."""
    return [
        {"name": "is_cpu_op", "boolVal": False},
        *_attributes({"num_ops": int(flop), "tensor_size": int(nbytes)}),
    ]


def _attributes(values: dict[str, int]) -> list[dict[str, object]]:
    """Return integer attributes; protobuf's JSON writes 64-bit integers as text."""
    kinds = {"tensor_size": "uint64Val"}
    return [{"name": name, kinds.get(name, "int64Val"): str(value)} for name, value in values.items()]
